//! How deep a text nests, told from its tokens alone, before a tree is built from it.
//!
//! The TOML parser bounds dotted keys and brackets each by themselves, not their product: a few kilobytes of dotted keys
//! in nested tables are a tree so deep that the recursion over it (even dropping it) overflows the stack and aborts the
//! process. This is not a parser: on text that is no TOML it counts too much, never too little.

use std::ops::Range;

use toml_parser::Source;
use toml_parser::lexer::TokenKind;

/// The config's own tables nest six deep.
pub(super) const DEPTH_MAX: usize = 32;

/// An open bracket, and the dots of the key that is being written inside it.
struct Level {
    /// None for the file itself.
    closed_by: Option<TokenKind>,
    dots: usize,
}

/// The first token that is nested too deep.
pub(super) fn too_deep(text: &str) -> Option<Range<usize>> {
    let mut levels = vec![Level { closed_by: None, dots: 0 }];
    let mut depth = 0;
    for token in Source::new(text).lex() {
        let level = levels.last_mut()?;
        match token.kind() {
            TokenKind::Dot => {
                level.dots += 1;
                depth += 1;
            }
            TokenKind::Comma | TokenKind::Newline => {
                depth -= level.dots;
                level.dots = 0;
            }
            TokenKind::LeftSquareBracket => {
                depth += 1;
                levels.push(Level { closed_by: Some(TokenKind::RightSquareBracket), dots: 0 });
            }
            TokenKind::LeftCurlyBracket => {
                depth += 1;
                levels.push(Level { closed_by: Some(TokenKind::RightCurlyBracket), dots: 0 });
            }
            kind if level.closed_by == Some(kind) => {
                depth -= level.dots + 1;
                levels.pop();
            }
            TokenKind::RightSquareBracket
            | TokenKind::RightCurlyBracket
            | TokenKind::Equals
            | TokenKind::Whitespace
            | TokenKind::Comment
            | TokenKind::LiteralString
            | TokenKind::BasicString
            | TokenKind::MlLiteralString
            | TokenKind::MlBasicString
            | TokenKind::Atom
            | TokenKind::Eof => {}
        }
        if depth > DEPTH_MAX {
            return Some(token.span().start()..token.span().end());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_brackets_and_dots_together() {
        let at_limit = format!("a = {}{}", "{ a.b = ".repeat(DEPTH_MAX / 2), "1".to_owned());
        assert_eq!(too_deep(&at_limit), None);
        assert!(too_deep(&format!("{at_limit}[")).is_some());
        assert!(too_deep(&format!("x.{at_limit}")).is_some());
    }

    #[test]
    fn forgets_what_was_closed() {
        let lists = "a = [[1.5, 2.5], [3.5, 4.5]]\n[x.y]\nb.c = { d.e = 1 }\n".repeat(100);
        assert_eq!(too_deep(&lists), None);
        let in_strings =
            format!("a = '{}'\nb = \"\"\"{}\"\"\" # {}", "[".repeat(99), "{".repeat(99), ".".repeat(99));
        assert_eq!(too_deep(&in_strings), None);
    }

    #[test]
    fn is_not_fooled_by_brackets_that_do_not_match() {
        assert!(too_deep(&"a = { ]".repeat(DEPTH_MAX + 1)).is_some());
        assert!(too_deep(&"a = [ }".repeat(DEPTH_MAX + 1)).is_some());
        assert_eq!(too_deep(&"]}".repeat(DEPTH_MAX + 1)), None);
    }
}
