//! Webhooks: where people and programs want to be told. Records and their rules; delivering is elsewhere.

use std::net::IpAddr;

use hyper::Uri;
use serde::{Deserialize, Serialize};

use super::Notify;
use super::address::AddressGuard;
use super::sign::Secret;
use crate::service::alerts::rule::Severity;
use crate::service::call::Call;
use crate::service::name::{check_name, check_text};
use crate::service::page::{Page, Paging};
use crate::service::refusal::Refusal;
use crate::service::secret::new_id;
use crate::store::{Records, Source};

/// By id.
pub(crate) const WEBHOOKS: Records<String, Webhook> = Records::new("webhooks");

/// Webhooks there may be: each has its own lane of messages in memory.
pub(crate) const WEBHOOKS_MAX: u64 = 50;

/// Longest URL.
pub(crate) const URL_BYTES_MAX: usize = 2_048;

/// A webhook as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Webhook {
    /// Where to.
    pub(crate) url: String,
    /// What it is for.
    pub(crate) description: String,
    /// Alerts that are less bad are not sent.
    pub(crate) severity: Severity,
    /// Whether anything is sent.
    pub(crate) enabled: bool,
    /// Signs what is sent.
    pub(crate) secret: Secret,
    /// When it was made.
    pub(crate) created_at_ms: u64,
}

/// What somebody may say of a webhook.
#[derive(Clone, Debug)]
pub(crate) struct WebhookWish {
    /// As [`Webhook::url`].
    pub(crate) url: String,
    /// As [`Webhook::description`].
    pub(crate) description: String,
    /// As [`Webhook::severity`].
    pub(crate) severity: Severity,
    /// As [`Webhook::enabled`].
    pub(crate) enabled: bool,
}

impl Notify {
    /// All webhooks, by their ids.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn list(&self, paging: Paging) -> Result<Page<(String, Webhook)>, Refusal> {
        Ok(paging.cut(self.store.read()?.all(WEBHOOKS)?))
    }

    /// One webhook.
    ///
    /// # Errors
    /// There is none of this id.
    pub(crate) fn find(&self, id: &str) -> Result<Webhook, Refusal> {
        check_name("id", id)?;
        find(&self.store.read()?, id)
    }

    /// Makes a webhook, with a secret of its own.
    ///
    /// # Errors
    /// The URL is none, or leads where webhooks may not go, or there are too many.
    pub(crate) fn create(&self, call: &Call, wish: WebhookWish) -> Result<(String, Webhook), Refusal> {
        self.check(&wish)?;
        let id = new_id();
        let WebhookWish { url, description, severity, enabled } = wish;
        let (secret, created_at_ms) = (Secret::random(), call.at_ms);
        let webhook = Webhook { url, description, severity, enabled, secret, created_at_ms };
        self.store.change(|writer| {
            if writer.count(WEBHOOKS)? >= WEBHOOKS_MAX {
                return Err(Refusal::limit("url", "webhooks", WEBHOOKS_MAX));
            }
            writer.put(WEBHOOKS, &id, &webhook)?;
            let done = call.done("webhooks.create", &id, &webhook.url);
            Ok(((id, webhook), done))
        })
    }

    /// Changes a webhook; its secret stays.
    ///
    /// # Errors
    /// There is none of this id, or as [`Notify::create`].
    pub(crate) fn change(&self, call: &Call, id: &str, wish: WebhookWish) -> Result<Webhook, Refusal> {
        check_name("id", id)?;
        self.check(&wish)?;
        self.store.change(|writer| {
            let WebhookWish { url, description, severity, enabled } = wish;
            let webhook = Webhook { url, description, severity, enabled, ..find(writer, id)? };
            writer.put(WEBHOOKS, &id.to_owned(), &webhook)?;
            let done = call.done("webhooks.change", id, &webhook.url);
            Ok((webhook, done))
        })
    }

    /// Removes a webhook, and what waits for it.
    ///
    /// # Errors
    /// There is none of this id.
    pub(crate) fn remove(&self, call: &Call, id: &str) -> Result<(), Refusal> {
        check_name("id", id)?;
        self.store.change(|writer| {
            let webhook: Webhook = find(writer, id)?;
            writer.remove(WEBHOOKS, &id.to_owned())?;
            Ok::<_, Refusal>(((), call.done("webhooks.delete", id, &webhook.url)))
        })?;
        self.forget(id);
        Ok(())
    }

    fn check(&self, wish: &WebhookWish) -> Result<(), Refusal> {
        check_text("description", &wish.description)?;
        check_url(&wish.url, &self.guard).map_err(|message| Refusal::invalid("url", "bad_url", message))
    }
}

fn find(source: &impl Source, id: &str) -> Result<Webhook, Refusal> {
    source.find(WEBHOOKS, &id.to_owned())?.ok_or_else(|| Refusal::not_found("id", "webhook", id))
}

/// Holds that a URL is one, and that an address in it is not of a network that is closed. What a name leads to is found
/// out when it is connected to, each time.
fn check_url(url: &str, guard: &AddressGuard) -> Result<(), String> {
    if url.len() > URL_BYTES_MAX {
        return Err(format!("`url` may be at most {URL_BYTES_MAX} bytes long"));
    }
    let uri: Uri = url.parse().map_err(|error| format!("`url` is no URL: {error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("`url` is to begin with https:// or http://".to_owned());
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("`url` may not have a user name in it: what is sent is signed instead".to_owned());
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or("`url` has no host")?;
    match bare(host).parse::<IpAddr>() {
        Ok(address) if !guard.permits(address) => Err(format!(
            "`url` leads to {address}, which is not of the public internet: allow its network in the master's \
             config (webhooks.allow) if that is meant"
        )),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// A host without the brackets of an IPv6 address.
pub(super) fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_urls_and_refuses_what_is_none_or_leads_inside() {
        let check = |url: &str| check_url(url, &AddressGuard::default());
        for good in ["https://example.com/hook?x=1", "http://1.1.1.1:8080", "https://[2606:4700::1111]/"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long = format!("https://example.com/{}", "x".repeat(URL_BYTES_MAX));
        for bad in [
            "",
            "example.com",
            "/path",
            "ftp://example.com",
            "file:///etc/passwd",
            "https://user:password@example.com/",
            "http://127.0.0.1/",
            "http://[::1]:80/",
            "http://[::ffff:169.254.169.254]/latest/meta-data",
            &long,
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
