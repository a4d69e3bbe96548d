//! The table of endpoints: which path is which, and which methods it takes. What they answer is in
//! `endpoint` and the files of the model APIs.

/// An endpoint, also the key by which requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Hello,
    Chat,
    Messages,
    Embeddings,
    Models,
    Sse,
    Echo,
    Upload,
    Bytes,
    Status,
    Health,
    Trailers,
    EarlyHints,
    Unknown,
    Stats,
    Reset,
    Connections,
    Fault,
}

impl Route {
    pub(crate) const ALL: [Self; 18] = [
        Self::Hello,
        Self::Chat,
        Self::Messages,
        Self::Embeddings,
        Self::Models,
        Self::Sse,
        Self::Echo,
        Self::Upload,
        Self::Bytes,
        Self::Status,
        Self::Health,
        Self::Trailers,
        Self::EarlyHints,
        Self::Unknown,
        Self::Stats,
        Self::Reset,
        Self::Connections,
        Self::Fault,
    ];

    /// The route of a path.
    pub(crate) fn of(path: &str) -> Self {
        match path {
            "/" | "" => Self::Hello,
            "/v1/chat/completions" => Self::Chat,
            "/v1/messages" => Self::Messages,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/models" => Self::Models,
            "/sse" => Self::Sse,
            "/echo" | "*" => Self::Echo,
            "/upload" => Self::Upload,
            "/health" => Self::Health,
            "/trailers" => Self::Trailers,
            "/early-hints" => Self::EarlyHints,
            "/_origin/stats" => Self::Stats,
            "/_origin/reset" => Self::Reset,
            "/_origin/connections" => Self::Connections,
            "/_origin/fault" => Self::Fault,
            _ if path.starts_with("/echo/") => Self::Echo,
            _ if path.starts_with("/bytes/") => Self::Bytes,
            _ if path.starts_with("/status/") => Self::Status,
            _ if path.starts_with("/v1/models/") => Self::Models,
            _ => Self::Unknown,
        }
    }

    /// How it is called in the statistics.
    pub(crate) fn pattern(self) -> &'static str {
        match self {
            Self::Hello => "/",
            Self::Chat => "/v1/chat/completions",
            Self::Messages => "/v1/messages",
            Self::Embeddings => "/v1/embeddings",
            Self::Models => "/v1/models",
            Self::Sse => "/sse",
            Self::Echo => "/echo",
            Self::Upload => "/upload",
            Self::Bytes => "/bytes/{n}",
            Self::Status => "/status/{code}",
            Self::Health => "/health",
            Self::Trailers => "/trailers",
            Self::EarlyHints => "/early-hints",
            Self::Unknown => "other",
            Self::Stats => "/_origin/stats",
            Self::Reset => "/_origin/reset",
            Self::Connections => "/_origin/connections",
            Self::Fault => "/_origin/fault",
        }
    }

    /// The methods it takes, as the `Allow` field writes them; `None` takes every one.
    pub(crate) fn allow(self) -> Option<&'static str> {
        match self {
            Self::Chat | Self::Messages | Self::Embeddings | Self::Reset => Some("POST"),
            Self::Upload => Some("POST, PUT, PATCH"),
            Self::Sse => Some("GET, HEAD, POST"),
            Self::Fault => Some("POST, DELETE"),
            Self::Echo | Self::Status | Self::Unknown => None,
            Self::Hello
            | Self::Models
            | Self::Bytes
            | Self::Health
            | Self::Trailers
            | Self::EarlyHints
            | Self::Stats
            | Self::Connections => Some("GET, HEAD"),
        }
    }

    pub(crate) fn takes(self, method: &str) -> bool {
        self.allow().is_none_or(|allowed| allowed.split(", ").any(|one| one == method))
    }

    /// Whether the request body means something to it. For the others it is read and forgotten.
    pub(crate) fn reads_its_body(self) -> bool {
        matches!(self, Self::Chat | Self::Messages | Self::Embeddings | Self::Echo | Self::Upload)
            || self.is_control()
    }

    /// Whether it steers the origin itself: no fault touches it, and it is not counted.
    pub(crate) fn is_control(self) -> bool {
        matches!(self, Self::Stats | Self::Reset | Self::Connections | Self::Fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found_by_its_pattern_and_counted_in_its_own_place() {
        for (index, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, index);
            let path = route.pattern().replace("{n}", "10").replace("{code}", "204");
            assert_eq!(Route::of(&path), route, "{path}");
        }
    }

    #[test]
    fn methods_match_whole_words() {
        assert!(Route::Upload.takes("PUT") && !Route::Upload.takes("PU") && !Route::Upload.takes("GET"));
        assert!(Route::Echo.takes("PURGE"));
    }
}
