//! The text of a config, made of parts: one listener, one route and one cluster unless the story wants more. It is text
//! on purpose: the program's own parser reads it.

use std::net::SocketAddr;
use std::path::Path;

/// What a story's config is made of. Each part holds lines of TOML.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    /// Lines of `[runtime]`; two workers unless they say otherwise.
    pub(crate) runtime: String,
    /// Further lines of `[admin]`.
    pub(crate) admin: String,
    /// Lines of `[limits]`.
    pub(crate) limits: String,
    /// Lines of `[log]`.
    pub(crate) log: String,
    /// Addresses of the listener `http`; a free port of 127.0.0.1 if empty.
    pub(crate) bind: Vec<String>,
    /// Further lines of the listener `http`.
    pub(crate) listener: String,
    /// Further lines of the route `all`.
    pub(crate) route: String,
    /// Addresses of the cluster `origin`.
    pub(crate) endpoints: Vec<String>,
    /// Further lines of the cluster `origin`.
    pub(crate) cluster: String,
    /// Whole tables, at the end. `{dir}` stands for the proxy's folder.
    pub(crate) more: String,
}

impl Config {
    /// Everything to one endpoint.
    pub(crate) fn to(endpoint: SocketAddr) -> Self {
        Self::to_all([endpoint])
    }

    /// Everything to these endpoints.
    pub(crate) fn to_all(endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        let endpoints = endpoints.into_iter().map(|endpoint| endpoint.to_string()).collect();
        Self { endpoints, ..Self::default() }
    }

    /// With this driver.
    pub(crate) fn driver(mut self, driver: &str) -> Self {
        self.runtime.push_str(&format!("driver = \"{driver}\"\n"));
        self
    }

    /// With this many workers.
    pub(crate) fn workers(mut self, workers: usize) -> Self {
        self.runtime.push_str(&format!("workers = {workers}\n"));
        self
    }

    /// With these lines in `[admin]`.
    pub(crate) fn admin(mut self, lines: &str) -> Self {
        self.admin.push_str(&format!("{lines}\n"));
        self
    }

    /// With these lines in `[limits]`.
    pub(crate) fn limits(mut self, lines: &str) -> Self {
        self.limits.push_str(&format!("{lines}\n"));
        self
    }

    /// With these lines in the listener.
    pub(crate) fn listener(mut self, lines: &str) -> Self {
        self.listener.push_str(&format!("{lines}\n"));
        self
    }

    /// With these lines in the route.
    pub(crate) fn route(mut self, lines: &str) -> Self {
        self.route.push_str(&format!("{lines}\n"));
        self
    }

    /// With these lines in the cluster.
    pub(crate) fn cluster(mut self, lines: &str) -> Self {
        self.cluster.push_str(&format!("{lines}\n"));
        self
    }

    /// With these tables at the end.
    pub(crate) fn more(mut self, tables: &str) -> Self {
        self.more.push_str(&format!("{tables}\n"));
        self
    }

    /// The file's text for a proxy whose folder is `dir`.
    pub(crate) fn render(&self, dir: &Path) -> String {
        let Self { runtime, admin, limits, log, bind, listener, route, endpoints, cluster, more } = self;
        let dir = dir.display();
        let workers = if runtime.contains("workers") { "" } else { "workers = 2\n" };
        let bind = if bind.is_empty() { &vec!["127.0.0.1:0".to_owned()] } else { bind };
        let endpoints: Vec<String> =
            endpoints.iter().map(|endpoint| format!("{{ address = \"{endpoint}\" }}")).collect();
        let text = format!(
            "[node]\nid = \"story\"\n[runtime]\n{workers}{runtime}\
             [admin]\nlisten = \"off\"\nsocket = \"{dir}/admin.sock\"\n{admin}\
             [log]\nlevel = \"debug\"\n{log}[limits]\n{limits}\
             [[listeners]]\nname = \"http\"\nbind = {bind:?}\n{listener}\
             [[routes]]\nname = \"all\"\ncluster = \"origin\"\n{route}\
             [[clusters]]\nname = \"origin\"\nendpoints = [{}]\n{cluster}{more}",
            endpoints.join(", ")
        );
        text.replace("{dir}", &dir.to_string())
    }
}
