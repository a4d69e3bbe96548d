//! HTTP/1.0 and HTTP/1.1 (RFC 9112): heads, body framing and encoding, as functions over byte slices. Not a connection: it
//! reads and writes nothing, holds no body bytes and knows no time.
//!
//! The one rule behind the details: what two parsers may read differently is refused, never repaired and never forwarded. A
//! proxy that guesses at framing lets one client's bytes become another client's request. (An answer that can be read in one way
//! only, but says it twice, is passed on in our own words: `framing`.)
//!
//! ```text
//! bytes ─ HeadScan ─ parse_request ─► RequestHead ─ encode_request ─► bytes for the origin
//!                                        │ length
//!                                        ▼
//!                                    BodyDecoder ─► "the next n bytes are body"
//! ```

pub mod body;
pub mod chunk;
pub mod encode;
pub mod error;
pub mod field;
mod framing;
pub mod glimpse;
pub mod head;
pub mod keep_alive;
pub mod reply;
pub mod request_head;
pub mod response_head;
pub mod target;
mod writer;

pub use body::{BodyDecoder, BodyError, Decoded, Scan};
pub use chunk::{CHUNK_END, LAST_CHUNK, Trailers, chunk_head, encode_last_chunk};
pub use encode::{HostChoice, RequestEdits, encode_request};
pub use error::{HeadErrorKind, RequestError, ResponseError};
pub use field::{Field, FieldKind, FieldStorage, Fields};
pub use glimpse::Glimpse;
pub use head::{HeadLimits, HeadScan};
pub use reply::{
    CONTINUE, Client, ErrorBody, ResponseEdits, SendLength, Sending, encode_error, encode_response,
    response_framing,
};
pub use request_head::{RequestHead, parse_request};
pub use response_head::{Asked, ResponseHead, ResponseLength, parse_response};
pub use target::{Host, Scheme, Target, TargetForm};
pub use writer::Full;
