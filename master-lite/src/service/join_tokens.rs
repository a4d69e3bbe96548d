//! Join tokens: what an operator gives a new host so that its agent may enrol. They end by themselves and by use, and
//! only a hash of each is kept.

use proto::fleet::{JoinToken, SECRET_BYTES, TokenId, Verifier};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::call::{Call, Role};
use super::name::{check_name, check_text};
use super::nodes::{NodeRole, check_region};
use super::owner::Owner;
use super::page::{Page, Paging};
use super::refusal::{Kind, Refusal};
use super::secret;
use crate::keys;
use crate::store::{Records, Source, Store, Writer};

/// By id.
pub(crate) const JOIN_TOKENS: Records<String, JoinTokenRecord> = Records::new("join_tokens");

/// Longest life: a rollout of a region takes days, not weeks.
pub(crate) const LIFETIME_S_MAX: u64 = 30 * 24 * 3600;
/// Unless told otherwise: time to walk over to the host.
pub(crate) const LIFETIME_S: u64 = 3600;
/// What whoever made a token has to be still while it is used: the role that `POST /join-tokens` demands.
pub(crate) const MAKER_ROLE: Role = Role::Operator;
/// Hosts that one token may let in: a region at once.
pub(crate) const USES_MAX: u32 = 1000;

/// A token as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JoinTokenRecord {
    /// For people.
    pub(crate) description: String,
    /// SHA-256 of the whole token.
    pub(crate) verifier: [u8; 32],
    /// Nodes of this role only.
    pub(crate) role: Option<NodeRole>,
    /// Nodes of this region only.
    pub(crate) region: Option<String>,
    /// How often it may be used in all.
    pub(crate) uses_max: u32,
    /// How often it has been.
    pub(crate) uses: u32,
    /// Who made it, as the audit log has it.
    pub(crate) created_by: String,
    /// The person it belongs to; none, in a store of a version before that kept no owners: see `migration`.
    #[serde(default)]
    pub(crate) owner: Option<Owner>,
    /// When, in milliseconds since 1970.
    pub(crate) created_at_ms: u64,
    /// Until when, likewise.
    pub(crate) expires_at_ms: u64,
}

/// A token to be made.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NewJoinToken {
    /// For people.
    #[schema(max_length = 1024)]
    pub(crate) description: String,
    /// Nodes of this role only.
    pub(crate) role: Option<NodeRole>,
    /// Nodes of this region only.
    #[schema(max_length = 128)]
    pub(crate) region: Option<String>,
    /// How many nodes it lets in; 1 unless given.
    #[schema(minimum = 1, maximum = 1000)]
    pub(crate) uses: Option<u32>,
    /// How long it is good; an hour unless given.
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub(crate) expires_in_s: Option<u64>,
}

/// The tokens.
pub(crate) struct JoinTokens {
    store: Store,
    limit: u64,
}

impl JoinTokens {
    /// Over a store, with at most so many tokens that are still good.
    pub(crate) fn new(store: Store, limit: u64) -> Self {
        Self { store, limit }
    }

    /// All tokens, by their ids.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn list(&self, paging: Paging) -> Result<Page<(String, JoinTokenRecord)>, Refusal> {
        Ok(paging.cut(self.store.read()?.all(JOIN_TOKENS)?))
    }

    /// Makes a token; gives its id, what is stored, and the token itself, which is nowhere else. Tokens that ended more
    /// than [`LIFETIME_S_MAX`] ago leave the list.
    ///
    /// # Errors
    /// Something is against the rules, or there are too many tokens.
    pub(crate) fn create(
        &self,
        call: &Call,
        new: &NewJoinToken,
    ) -> Result<(String, JoinTokenRecord, String), Refusal> {
        let record = record_of(call, new)?;
        let id = secret::new_id();
        let typed: TokenId = id.parse().map_err(|error| Refusal::internal(&error))?;
        let token = JoinToken::new(typed, keys::random::<SECRET_BYTES>());
        let record = self.store.change(|writer| {
            forget_old(writer, call.at_ms)?;
            if writer.count(JOIN_TOKENS)? >= self.limit {
                return Err(Refusal::limit("description", "join tokens", self.limit));
            }
            let verifier = *token.verifier().as_bytes();
            let record = JoinTokenRecord { verifier, owner: Owner::of(writer, call)?, ..record };
            writer.put(JOIN_TOKENS, &id, &record)?;
            let detail = format!("for {} nodes", record.uses_max);
            Ok((record, call.done("join_tokens.create", &id, detail)))
        })?;
        Ok((id, record, token.reveal()))
    }

    /// Removes a token, which lets nobody in from then on.
    ///
    /// # Errors
    /// There is none of this id.
    pub(crate) fn remove(&self, call: &Call, id: &str) -> Result<(), Refusal> {
        check_name("id", id)?;
        self.store.change(|writer| {
            if !writer.remove(JOIN_TOKENS, &id.to_owned())? {
                return Err(Refusal::not_found("id", "join token", id));
            }
            Ok(((), call.done("join_tokens.delete", id, "")))
        })
    }
}

/// A token that was used.
pub(super) struct Used {
    /// Its id.
    pub(super) id: String,
    /// Where the node is: what it said, or where it said nothing what the token says.
    pub(super) region: String,
}

/// Uses a token once, for a node of this role and region.
///
/// # Errors
/// It is unknown, has ended or is used up (which of them is not said), or is for other nodes.
pub(super) fn use_once(
    writer: &Writer,
    token: &str,
    role: NodeRole,
    region: &str,
    at_ms: u64,
) -> Result<Used, Refusal> {
    let token: JoinToken = token.parse().map_err(|_| no_good())?;
    let id = token.id().as_str().to_owned();
    let mut record = writer.find(JOIN_TOKENS, &id)?.ok_or_else(no_good)?;
    let is_its = Verifier::from_bytes(&record.verifier).is_some_and(|kept| kept == token.verifier());
    if !is_its || at_ms >= record.expires_at_ms || record.uses >= record.uses_max {
        return Err(no_good());
    }
    let owner = record.owner.as_ref().map(|owner| owner.role(writer)).transpose()?.flatten();
    if owner.is_none_or(|role| role < MAKER_ROLE) {
        return Err(no_good());
    }
    if record.role.is_some_and(|wanted| wanted != role) {
        return Err(Refusal::of(Kind::Forbidden, "role", "other_role", "the join token is for another role"));
    }
    let granted = record.region.clone().filter(|_| region.is_empty()).unwrap_or_else(|| region.to_owned());
    if record.region.as_ref().is_some_and(|wanted| *wanted != granted) {
        let message = "the join token is for another region";
        return Err(Refusal::of(Kind::Forbidden, "region", "other_region", message));
    }
    record.uses += 1;
    writer.put(JOIN_TOKENS, &id, &record)?;
    Ok(Used { id, region: granted })
}

/// Removes the tokens of a person; gives their ids.
pub(super) fn remove_all_of(writer: &Writer, owner: &Owner) -> Result<Vec<String>, Refusal> {
    let mut removed = Vec::new();
    for (id, record) in writer.all(JOIN_TOKENS)? {
        if record.owner.as_ref() == Some(owner) {
            writer.remove(JOIN_TOKENS, &id)?;
            removed.push(id);
        }
    }
    Ok(removed)
}

fn no_good() -> Refusal {
    let message = "the join token is unknown, has ended or is used up";
    Refusal::of(Kind::Unauthenticated, "join_token", "bad_token", message)
}

fn record_of(call: &Call, new: &NewJoinToken) -> Result<JoinTokenRecord, Refusal> {
    check_text("description", &new.description)?;
    new.region.as_deref().map(check_region).transpose()?;
    let uses_max = new.uses.unwrap_or(1);
    if !(1..=USES_MAX).contains(&uses_max) {
        return Err(Refusal::invalid(
            "uses",
            "out_of_range",
            format!("`uses` is to be between 1 and {USES_MAX}"),
        ));
    }
    let lifetime_s = new.expires_in_s.unwrap_or(LIFETIME_S);
    if !(1..=LIFETIME_S_MAX).contains(&lifetime_s) {
        let message = format!("`expires_in_s` is to be between 1 and {LIFETIME_S_MAX}");
        return Err(Refusal::invalid("expires_in_s", "out_of_range", message));
    }
    Ok(JoinTokenRecord {
        description: new.description.clone(),
        verifier: [0; 32],
        role: new.role,
        region: new.region.clone(),
        uses_max,
        uses: 0,
        created_by: call.actor.name().to_owned(),
        owner: None,
        created_at_ms: call.at_ms,
        expires_at_ms: call.at_ms + lifetime_s * 1000,
    })
}

fn forget_old(writer: &Writer, at_ms: u64) -> Result<(), Refusal> {
    let long_ago_ms = at_ms.saturating_sub(LIFETIME_S_MAX * 1000);
    for (id, record) in writer.all(JOIN_TOKENS)? {
        if record.expires_at_ms < long_ago_ms {
            writer.remove(JOIN_TOKENS, &id)?;
        }
    }
    Ok(())
}
