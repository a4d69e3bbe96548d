//! The program's command line: what it says, and its exit codes.

use crate::edge::agent_says;

#[test]
fn check_says_good_or_where_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    let path = path.to_str().unwrap();
    std::fs::write(path, "[master]\nurl = \"https://m:1\"\nca = \"/ca.pem\"\n").unwrap();
    assert_eq!(agent_says(&["check", "-c", path]), (Some(0), format!("{path}: good\n")));

    std::fs::write(path, "[master]\nurl = \"http://m:1\"\n").unwrap();
    for verb in ["check", "run"] {
        let (code, said) = agent_says(&[verb, "-c", path]);
        assert_eq!(code, Some(2));
        assert!(said.starts_with(&format!("{path}:2:7: without TLS")), "{said}");
        assert!(said.contains("= help: write https://"), "{said}");
    }
}

#[test]
fn what_cannot_be_used_ends_with_two_and_what_fails_with_one() {
    assert_eq!(agent_says(&["check", "-c", "/nonexistent"]).0, Some(2));
    assert_eq!(agent_says(&["sing"]).0, Some(2));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    // A file where the state folder should be.
    let text = format!(
        "[master]\nurl = \"https://m:1\"\nca = \"/ca.pem\"\n[state]\ndir = \"{}/agent.toml/state\"\n",
        dir.path().display()
    );
    std::fs::write(&path, text).unwrap();
    let (code, said) = agent_says(&["run", "-c", path.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("state.dir"), "{said}");
}
