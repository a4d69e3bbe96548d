//! The program's command line: what it says, and its exit codes.

use crate::edge::agent_says;

#[test]
fn check_says_good_or_where_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    let path = path.to_str().unwrap();
    std::fs::write(path, "[master]\nurl = \"https://m:1\"\nca = \"/ca.pem\"\n").unwrap();
    assert_eq!(agent_says(&["check", "-c", path]), (Some(0), format!("{path}: good\n")));
    assert_eq!(agent_says(&["check", path]), (Some(0), format!("{path}: good\n")));
    assert_eq!(agent_says(&["check", path, "-c", path]).0, Some(2));
    assert_eq!(agent_says(&["check"]).0, Some(2));

    std::fs::write(path, b"# f\xfcr alle\n").unwrap();
    let (code, said) = agent_says(&["check", path]);
    assert_eq!(code, Some(2));
    assert!(said.starts_with(&format!("{path}:1:4: ")) && said.contains("iconv -f ISO-8859-1 "), "{said}");

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

/// As it is installed, and with what it shows as comments.
#[test]
fn the_sample_and_what_it_shows_as_comments_are_good() {
    let sample = include_str!("../../systemd/agent.toml").replace("${MILLRACE_JOIN_TOKEN}", "mrj1.id.secret");
    let mut with_all = sample.clone();
    for key in ["id", "server_name", "certificate", "key"] {
        assert!(with_all.contains(&format!("\n# {key} = ")), "the sample does not show {key}");
        with_all = with_all.replace(&format!("\n# {key} = "), &format!("\n{key} = "));
    }
    let with_file =
        sample.replace("\njoin_token = ", "\n# ").replace("\n# join_token_file", "\njoin_token_file");
    let insecure = sample
        .replace("https://", "http://")
        .replace("\nca = ", "\n# ")
        .replace("\n# insecure", "\ninsecure");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    let path = path.to_str().unwrap();
    for text in [sample, with_all, with_file, insecure] {
        std::fs::write(path, &text).unwrap();
        assert_eq!(agent_says(&["check", "-c", path]), (Some(0), format!("{path}: good\n")), "{text}");
    }
}
