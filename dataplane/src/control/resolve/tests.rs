//! The resolver's memory: what it does with answers and failures, and when it asks again. The real resolver is asked for
//! `localhost` and for a name that cannot be.

use super::*;

const NAME: &str = "llm.internal";

fn config(endpoint: &str) -> Config {
    let text = format!(
        "[[listeners]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\n[[routes]]\nname = \"r\"\ncluster = \"c\"\n\
         [[clusters]]\nname = \"c\"\ndns_refresh = \"5s\"\nendpoints = [{{ address = \"{endpoint}\" }}]\n"
    );
    Config::parse(&text, &|_| None, "node").unwrap()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn host() -> Host {
    (NAME.to_owned(), 8000)
}

/// With what another process knew of the name.
fn resolver_that_knows(addresses: &[&str]) -> (Resolver, Config) {
    let config = config(&format!("{NAME}:8000"));
    let addresses = addresses.iter().map(|text| address(text)).collect();
    let mut resolver = Resolver::new(vec![(host(), addresses)]);
    resolver.follow(&config);
    (resolver, config)
}

fn addresses(resolver: &Resolver, config: &Config) -> Vec<String> {
    let endpoints = resolver.endpoints(config, &HashMap::new());
    endpoints[0].iter().map(|endpoint| endpoint.address.to_string()).collect()
}

fn unresolved(resolver: &Resolver, config: &Config) -> Option<String> {
    let [named] = &resolver.named_endpoints(config)[..] else { panic!("one endpoint has a name") };
    named.unresolved.clone().map(|failure| failure.error)
}

#[tokio::test]
async fn each_address_of_a_name_is_an_endpoint_under_the_configured_name() {
    let config = config("localhost:8000");
    let mut resolver = Resolver::new(Vec::new());
    resolver.learn(&config).await;
    resolver.follow(&config);
    assert!(!addresses(&resolver, &config).is_empty());
    let host = ("localhost".to_owned(), 8000);
    let answer = vec![address("10.0.0.1:8000"), address("10.0.0.2:8000")];
    assert!(resolver.handle_answer(&host, Ok(answer)));
    assert_eq!(addresses(&resolver, &config), ["10.0.0.1:8000", "10.0.0.2:8000"]);
    let endpoints = resolver.endpoints(&config, &HashMap::new());
    assert!(endpoints[0].iter().all(|endpoint| endpoint.name == "localhost:8000"));
}

#[test]
fn a_failed_look_up_keeps_the_last_good_answer() {
    let (mut resolver, config) = resolver_that_knows(&["10.0.0.1:8000"]);
    assert!(!resolver.handle_answer(&host(), Err(io::Error::other("no server"))));
    assert_eq!(addresses(&resolver, &config), ["10.0.0.1:8000"]);
    assert_eq!(unresolved(&resolver, &config), None);
    assert_eq!(resolver.known(), [(host(), vec![address("10.0.0.1:8000")])]);
}

#[tokio::test]
async fn a_name_that_nobody_has_leaves_its_endpoint_without_an_address() {
    let config = config("no-such-name.invalid:1");
    let mut resolver = Resolver::new(Vec::new());
    resolver.learn(&config).await;
    resolver.follow(&config);
    assert!(addresses(&resolver, &config).is_empty());
    assert!(unresolved(&resolver, &config).is_some());
    let host = ("no-such-name.invalid".to_owned(), 1);
    assert!(resolver.handle_answer(&host, Ok(vec![address("10.0.0.1:1")])));
    assert_eq!(
        (addresses(&resolver, &config), unresolved(&resolver, &config)),
        (vec!["10.0.0.1:1".to_owned()], None)
    );
}

#[tokio::test(start_paused = true)]
async fn names_are_due_a_refresh_apart() {
    let (mut resolver, _) = resolver_that_knows(&["10.0.0.1:8000"]);
    assert!(resolver.take_due().is_empty());
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(resolver.take_due(), [host()]);
    resolver.handle_answer(&host(), Err(io::Error::other("no server")));
    assert!(resolver.take_due().is_empty());
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(resolver.take_due(), [host()]);
}

#[tokio::test(start_paused = true)]
async fn a_name_without_an_address_is_asked_for_soon_at_first_and_then_at_every_refresh() {
    let (mut resolver, config) = resolver_that_knows(&[]);
    let mut waits = Vec::new();
    for _ in 0..6 {
        let began = Instant::now();
        while resolver.take_due().is_empty() {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        waits.push(began.elapsed().as_secs());
        resolver.handle_answer(&host(), Err(io::Error::other("no such name")));
    }
    assert_eq!(waits, [1, 1, 2, 4, 5, 5]);
    assert_eq!(unresolved(&resolver, &config).as_deref(), Some("no such name"));
}

#[tokio::test(start_paused = true)]
async fn a_look_up_without_an_answer_is_told_and_is_the_only_one() {
    let (mut resolver, config) = resolver_that_knows(&[]);
    tokio::time::advance(RETRY_AFTER).await;
    assert_eq!(resolver.take_due(), [host()]);
    assert_eq!(unresolved(&resolver, &config), None);
    for _ in 0..60 {
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(resolver.take_due().is_empty(), "a second thread would wait for the same answer");
    }
    assert_eq!(unresolved(&resolver, &config).as_deref(), Some("the resolver has not answered yet"));
    assert!(resolver.handle_answer(&host(), Ok(vec![address("10.0.0.1:8000")])), "late is good enough");
    assert_eq!(unresolved(&resolver, &config), None);
}

#[tokio::test(start_paused = true)]
async fn look_ups_that_hang_are_so_many_at_most_and_others_are_told_of_in_time() {
    let hanging = LOOKUPS.acquire_many(LOOKUPS_MAX as u32).await.unwrap();
    let config = config("localhost:8000");
    let mut resolver = Resolver::new(Vec::new());
    resolver.learn(&config).await;
    resolver.follow(&config);
    assert_eq!(unresolved(&resolver, &config).as_deref(), Some("the resolver has not answered yet"));
    drop(hanging);
    let (host, answer) = resolver.next_answer().await;
    assert!(resolver.handle_answer(&host, answer));
    assert_eq!(unresolved(&resolver, &config), None);
}

#[test]
fn a_failure_keeps_the_time_of_the_first_in_a_row() {
    let (mut resolver, config) = resolver_that_knows(&[]);
    let failure = |resolver: &Resolver| resolver.named_endpoints(&config)[0].unresolved.clone().unwrap();
    resolver.handle_answer(&host(), Err(io::Error::other("first")));
    let first = failure(&resolver);
    resolver.handle_answer(&host(), Err(io::Error::other("second")));
    assert_eq!(failure(&resolver), Failure { error: "second".to_owned(), since: first.since });
}

#[tokio::test]
async fn an_answer_for_a_config_that_was_not_applied_changes_nothing_that_is_served() {
    let mut resolver = Resolver::new(Vec::new());
    resolver.learn(&config("no-such-name.invalid:1")).await;
    let host = ("no-such-name.invalid".to_owned(), 1);
    assert!(!resolver.handle_answer(&host, Ok(vec![address("10.0.0.1:1")])));
    resolver.follow(&config("localhost:8000"));
    assert!(!resolver.handle_answer(&host, Ok(vec![address("10.0.0.2:1")])), "the name is forgotten");
}

#[test]
fn health_flags_are_used_again() {
    let config = config("127.0.0.1:8000");
    let resolver = Resolver::new(Vec::new());
    let first = resolver.endpoints(&config, &HashMap::new());
    let flag = Arc::clone(&first[0][0].health);
    let second = resolver.endpoints(&config, &HashMap::from([(first[0][0].id, Arc::clone(&flag))]));
    assert!(Arc::ptr_eq(&second[0][0].health, &flag));
}
