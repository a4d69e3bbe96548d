//! The configs of the fleet in versions: made once, never changed, checked by the data plane's own code. What becomes of
//! them is `publishes`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::call::Call;
use super::config_text::{self, Variables};
use super::name::{check_name, check_text};
use super::nodes::{NodeRole, check_id, check_region};
use super::page::{Page, Paging};
use super::refusal::Refusal;
use super::secret;
use crate::store::{Order, Records, Source, Store};

/// By version.
pub(crate) const CONFIGS: Records<String, ConfigRecord> = Records::new("configs");

/// The texts, by version: apart, so that a list reads none of them.
pub(crate) const CONFIG_TEXTS: Records<String, String> = Records::new("config_texts");

/// The versions in the order in which they were made.
const CONFIG_ORDER: Records<u64, String> = Records::new("config_order");

/// The tables of this service.
pub(super) const TABLES: [&str; 3] = [CONFIGS.name(), CONFIG_TEXTS.name(), CONFIG_ORDER.name()];

/// Regions, or nodes, of one config: above it, a region or a role says it shorter.
pub(crate) const TARGETS_MAX: usize = 1000;

/// Which nodes a config is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NodeType {
    /// Of any role.
    #[default]
    All,
    /// Edges.
    Edge,
    /// Cores.
    Core,
}

/// The nodes that a config is for: those that meet all three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Targets {
    /// Of this role.
    pub(crate) node_type: NodeType,
    /// In one of these regions; empty: in any.
    pub(crate) regions: Vec<String>,
    /// One of these; empty: any.
    pub(crate) nodes: Vec<String>,
}

/// A version without its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConfigRecord {
    /// For people.
    pub(crate) description: String,
    /// Of the text, in hexadecimal digits.
    pub(crate) sha256: String,
    /// Bytes of the text.
    pub(crate) bytes: u64,
    /// Whom it is for.
    pub(crate) targets: Targets,
    /// For the check alone.
    pub(crate) variables: Variables,
    /// What is allowed but probably not meant.
    pub(crate) warnings: Vec<String>,
    /// Who made it.
    pub(crate) created_by: String,
    /// When, in milliseconds since 1970.
    pub(crate) created_at_ms: u64,
}

/// A version to be made.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewConfig {
    /// Its name; `v1`, `v2` and so on unless given.
    #[serde(default)]
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    pub(crate) version: Option<String>,
    /// For people.
    #[serde(default)]
    #[schema(max_length = 1024)]
    pub(crate) description: String,
    /// The data plane's config: TOML, or the same in base64.
    pub(crate) config_data: String,
    /// For nodes of this role.
    #[serde(default)]
    pub(crate) node_type: NodeType,
    /// For nodes in one of these regions; empty: in any.
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub(crate) regions: Vec<String>,
    /// For these nodes; empty: for any.
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub(crate) nodes: Vec<String>,
    /// Values for `${NAME}` that stand for what the nodes have in their environments. For the check alone: they are not
    /// sent to nodes.
    #[serde(default)]
    pub(crate) variables: Variables,
}

/// The versions.
pub(crate) struct Configs {
    store: Store,
    limit: u64,
}

impl Configs {
    /// Over a store, with at most so many versions.
    pub(crate) fn new(store: Store, limit: u64) -> Self {
        Self { store, limit }
    }

    /// All versions, the newest first.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn list(&self, paging: Paging) -> Result<Page<(String, ConfigRecord)>, Refusal> {
        let reader = self.store.read()?;
        let mut versions = Vec::new();
        let wanted = paging.skipped() + paging.page_size;
        reader.visit(CONFIG_ORDER, std::ops::Bound::Unbounded, Order::Descending, |_, version| {
            versions.push(version);
            (versions.len() as u64) < wanted
        })?;
        let mut page = Page { total: reader.count(CONFIG_ORDER)?, ..paging.cut(versions) }.map(|version| {
            let record = reader.find(CONFIGS, &version);
            record.map(|record| record.map(|record| (version, record)))
        });
        let items: Result<Vec<_>, _> = page.items.drain(..).collect();
        Ok(Page { items: items?.into_iter().flatten().collect(), total: page.total, paging })
    }

    /// One version with its text.
    ///
    /// # Errors
    /// There is none of this name.
    pub(crate) fn find(&self, version: &str) -> Result<(ConfigRecord, String), Refusal> {
        find(&self.store.read()?, "version", version)
    }

    /// Makes a version, which nothing changes from then on; gives its name.
    ///
    /// # Errors
    /// The name is taken, the text is no good config, or something else is against the rules.
    pub(crate) fn create(&self, call: &Call, new: NewConfig) -> Result<(String, ConfigRecord), Refusal> {
        new.version.as_deref().map(|version| check_name("version", version)).transpose()?;
        check_text("description", &new.description)?;
        let targets = Targets { node_type: new.node_type, regions: new.regions, nodes: new.nodes };
        targets.check()?;
        let text = config_text::decode(&new.config_data)?;
        let warnings = config_text::check(&text, &new.variables)?;
        let record = ConfigRecord {
            description: new.description,
            sha256: secret::sha256(&text),
            bytes: text.len() as u64,
            targets,
            variables: new.variables,
            warnings,
            created_by: call.actor.name().to_owned(),
            created_at_ms: call.at_ms,
        };
        self.store.change(|writer| {
            let number = writer.last_key(CONFIG_ORDER)?.unwrap_or(0) + 1;
            let version = new.version.unwrap_or_else(|| format!("v{number}"));
            if writer.find(CONFIGS, &version)?.is_some() {
                let message =
                    format!("there is a version `{version}` already, and versions are never changed");
                return Err(Refusal::conflict("version", "taken", message));
            }
            if writer.count(CONFIGS)? >= self.limit {
                return Err(Refusal::limit("version", "versions", self.limit));
            }
            writer.put(CONFIGS, &version, &record)?;
            writer.put(CONFIG_TEXTS, &version, &text)?;
            writer.put(CONFIG_ORDER, &number, &version)?;
            let entry = call.done("configs.create", &version, format!("sha256 {}", record.sha256));
            Ok(((version, record), entry))
        })
    }

    /// Checks a text as the data plane would; gives its warnings.
    ///
    /// # Errors
    /// Each mistake, by line and column.
    pub(crate) fn validate(&self, data: &str, variables: &Variables) -> Result<Vec<String>, Refusal> {
        config_text::check(&config_text::decode(data)?, variables)
    }

    /// The way from one version to another.
    ///
    /// # Errors
    /// One of them is not there.
    pub(crate) fn diff(&self, from: &str, to: &str) -> Result<String, Refusal> {
        let reader = self.store.read()?;
        let (_, before) = find(&reader, "a", from)?;
        let (_, after) = find(&reader, "b", to)?;
        Ok(config_text::unified_diff((from, &before), (to, &after)))
    }
}

/// A version with its text, looked for because of this field.
pub(super) fn find(
    source: &impl Source,
    field: &str,
    version: &str,
) -> Result<(ConfigRecord, String), Refusal> {
    check_name(field, version)?;
    let key = version.to_owned();
    match (source.find(CONFIGS, &key)?, source.find(CONFIG_TEXTS, &key)?) {
        (Some(record), Some(text)) => Ok((record, text)),
        (None, _) | (_, None) => Err(Refusal::not_found(field, "version", version)),
    }
}

impl Targets {
    /// Whether a node is meant.
    pub(crate) fn include(&self, id: &str, role: NodeRole, region: &str) -> bool {
        let has_role = match self.node_type {
            NodeType::All => true,
            NodeType::Edge => role == NodeRole::Edge,
            NodeType::Core => role == NodeRole::Core,
        };
        has_role
            && (self.regions.is_empty() || self.regions.iter().any(|wanted| wanted == region))
            && (self.nodes.is_empty() || self.nodes.iter().any(|wanted| wanted == id))
    }

    fn check(&self) -> Result<(), Refusal> {
        for (field, list) in [("regions", &self.regions), ("nodes", &self.nodes)] {
            if list.len() > TARGETS_MAX {
                let message = format!("`{field}` may have at most {TARGETS_MAX} entries");
                return Err(Refusal::invalid(field, "too_many", message));
            }
        }
        let at = |field: &str, index, mut refusal: Refusal| {
            refusal.details[0].field = format!("{field}[{index}]");
            refusal
        };
        for (index, region) in self.regions.iter().enumerate() {
            check_region(region).map_err(|refusal| at("regions", index, refusal))?;
        }
        for (index, node) in self.nodes.iter().enumerate() {
            check_id(node).map_err(|refusal| at("nodes", index, refusal))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_met_in_all_three_ways() {
        let targets = |node_type, regions: &[&str], nodes: &[&str]| Targets {
            node_type,
            regions: regions.iter().map(|&region| region.to_owned()).collect(),
            nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
        };
        let everybody = targets(NodeType::All, &[], &[]);
        assert!(everybody.include("a", NodeRole::Core, ""));
        let edges = targets(NodeType::Edge, &["hk", "sg"], &[]);
        assert!(edges.include("a", NodeRole::Edge, "sg"));
        assert!(!edges.include("a", NodeRole::Core, "sg"));
        assert!(!edges.include("a", NodeRole::Edge, "us"));
        let two = targets(NodeType::All, &["hk"], &["a", "b"]);
        assert!(two.include("b", NodeRole::Edge, "hk"));
        assert!(!two.include("c", NodeRole::Edge, "hk"));
        assert!(!two.include("b", NodeRole::Edge, "us"));
    }

    #[test]
    fn a_bad_target_is_named_by_its_place() {
        let bad = Targets { nodes: vec!["a".into(), "../b".into()], ..Targets::default() };
        assert_eq!(bad.check().unwrap_err().details[0].field, "nodes[1]");
        let many = Targets { regions: vec!["hk".into(); TARGETS_MAX + 1], ..Targets::default() };
        assert!(many.check().is_err());
    }
}
