//! A small client of the REST API: JSON there and back, with the status beside it whatever it is.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

/// Longer, and the master hangs.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Asks one master, as one caller.
#[derive(Clone)]
pub(crate) struct Client {
    agent: ureq::Agent,
    base: String,
    headers: Vec<(String, String)>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Null where the body is not JSON.
    pub(crate) json: Value,
    pub(crate) bytes: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl Client {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT));
        let agent = config.proxy(None).build().into();
        Self { agent, base: format!("http://{addr}"), headers: Vec::new() }
    }

    /// The same caller, of a master at another address.
    pub(crate) fn at(&self, addr: SocketAddr) -> Self {
        Self { headers: self.headers.clone(), ..Self::new(addr) }
    }

    /// The same with a login token or an API key.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        self.with_header("authorization", &format!("Bearer {token}"))
    }

    /// The same with one more header.
    pub(crate) fn with_header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None)
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, Some(body.to_string()))
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, Some(body.to_string()))
    }

    /// Sends anything, as JSON where there is a body.
    pub(crate) fn send(&self, method: &str, path: &str, body: Option<String>) -> Answer {
        self.try_send(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// The same; an error where no whole answer came.
    pub(crate) fn try_send(
        &self,
        method: &str,
        path: &str,
        body: Option<String>,
    ) -> Result<Answer, ureq::Error> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        let has_type = self.headers.iter().any(|(name, _)| name == "content-type");
        if body.is_some() && !has_type {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let mut response = match body {
            Some(body) => self.agent.run(request.body(body)?)?,
            None => self.agent.run(request.body(())?)?,
        };
        let bytes = response.body_mut().with_config().limit(256 << 20).read_to_vec()?;
        let headers = response.headers().iter();
        Ok(Answer {
            status: response.status().as_u16(),
            json: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            bytes,
            headers: headers
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                .collect(),
        })
    }
}

impl Answer {
    /// `data`, of an answer that has to be good.
    #[track_caller]
    pub(crate) fn data(&self) -> &Value {
        assert!((200..300).contains(&self.status), "{}: {}", self.status, self.json);
        &self.json["data"]
    }

    /// Holds that it was refused with this status because of this field.
    #[track_caller]
    pub(crate) fn assert_refused(&self, status: u16, field: &str) {
        assert_eq!(self.status, status, "{}", self.json);
        assert_eq!(self.json["code"], status, "{}", self.json);
        let fields: Vec<&str> = self.json["details"]
            .as_array()
            .unwrap()
            .iter()
            .map(|detail| detail["field"].as_str().unwrap())
            .collect();
        assert!(fields.contains(&field), "not {field}: {}", self.json);
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}
