//! The API's document: the one that is served is the one that is checked in, and it is one.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod story;

use std::path::Path;

use story::Master;

#[test]
fn the_document_that_is_checked_in_is_the_one_that_is_served() {
    let master = Master::start();
    let served = String::from_utf8(master.anonymous().get("/api/v1/openapi.json").bytes).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &served).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        served == kept,
        "master-lite/openapi.json is not what the program serves: look at it with BLESS=1"
    );
}

#[test]
fn the_document_is_one_of_openapi_3_1_and_every_reference_leads_somewhere() {
    let master = Master::start();
    let document = master.anonymous().get("/api/v1/openapi.json").json;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let text = document.to_string();
    for reference in text.split("\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer} leads nowhere");
    }
}

#[test]
fn the_page_shows_every_route_and_loads_nothing() {
    let master = Master::start();
    let document = master.anonymous().get("/api/v1/openapi.json").json;
    let page = master.anonymous().get("/api/v1/docs");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let page = String::from_utf8(page.bytes).unwrap();
    for path in document["paths"].as_object().unwrap().keys() {
        assert!(page.contains(path), "{path}");
    }
    for foreign in ["http://", "https://", "<script", "<link", "src="] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}
