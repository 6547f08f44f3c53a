//! Enough of Rust's grammar to read our own sources: comments and literals, paths, `use` trees, test modules.

/// A source text, split into what the compiler acts on and the texts in it.
pub(crate) struct Source {
    /// The text with comments and the insides of literals blanked; same length in lines, so places stay right.
    pub(crate) code: String,
    /// String literals: where they begin in `code`, and what they say (escapes left as written).
    pub(crate) literals: Vec<(usize, String)>,
}

/// A path such as `crate::store::Error`, with `use` trees spread out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Path {
    /// The line it stands on, from 1.
    pub(crate) line: usize,
    /// Its names in order.
    pub(crate) names: Vec<String>,
}

impl Source {
    pub(crate) fn parse(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut code = String::with_capacity(text.len());
        let mut literals = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let rest = &text[at..];
            let after_word = code.ends_with(is_word);
            if let Some(length) = comment(rest) {
                blank(&mut code, &rest[..length]);
                at += length;
            } else if let Some((open, inside, close)) = string(rest).filter(|_| !after_word) {
                literals.push((code.len(), rest[open..open + inside].to_owned()));
                code.push('"');
                blank(&mut code, &rest[1..open + inside + close - 1]);
                code.push('"');
                at += open + inside + close;
            } else if let Some(length) = character(rest) {
                blank(&mut code, &rest[..length]);
                at += length;
            } else {
                let next = rest.chars().next().expect("at is before the end");
                code.push(next);
                at += next.len_utf8();
            }
        }
        Self { code, literals }
    }

    /// The same without modules marked `#[cfg(test)]`.
    pub(crate) fn without_tests(mut self) -> Self {
        while let Some(start) = self.code.find("#[cfg(test)]") {
            let item = &self.code[start..];
            let end = match (item.find('{'), item.find(';')) {
                (Some(brace), semicolon) if semicolon.is_none_or(|semicolon| brace < semicolon) => {
                    start + brace + block(&item[brace..]).len()
                }
                (_, Some(semicolon)) => start + semicolon + 1,
                (_, None) => self.code.len(),
            };
            let mut blanked = String::new();
            blank(&mut blanked, &self.code[start..end]);
            self.code.replace_range(start..end, &blanked);
            self.literals.retain(|(at, _)| !(start..end).contains(at));
        }
        self
    }

    /// Every path in the code, `use` trees spread out into whole paths.
    pub(crate) fn paths(&self) -> Vec<Path> {
        let mut paths = Vec::new();
        let mut at = 0;
        while let Some(step) = self.code[at..].find(is_word) {
            at += step;
            let line = self.line_of(at);
            let rest = &self.code[at..];
            let word = word(rest);
            // `use<'a>` in a return type captures lifetimes and imports nothing.
            if word == "use" && !rest.starts_with("use<") && !self.code[..at].ends_with('#') {
                let end = rest.find(';').unwrap_or(rest.len());
                spread(&rest["use".len()..end], &[], line, &mut paths);
                at += end;
                continue;
            }
            let names = path(rest);
            at += names.1;
            if names.0.len() > 1 {
                paths.push(Path { line, names: names.0 });
            }
        }
        paths
    }

    /// Every word of the code that stands alone or in a path, with its line.
    pub(crate) fn words(&self) -> Vec<(usize, &str)> {
        let mut words = Vec::new();
        for (number, line) in self.code.lines().enumerate() {
            words.extend(
                line.split(|c| !is_word(c)).filter(|word| !word.is_empty()).map(|word| (number + 1, word)),
            );
        }
        words
    }

    /// The literals within the blocks of items that begin like `head`, e.g. `fn code(`.
    pub(crate) fn literals_in(&self, head: &str) -> Vec<&str> {
        let mut found = Vec::new();
        for (start, _) in self.code.match_indices(head) {
            let Some(brace) = self.code[start..].find('{') else { continue };
            let end = start + brace + block(&self.code[start + brace..]).len();
            let inside = self.literals.iter().filter(|(at, _)| (start..end).contains(at));
            found.extend(inside.map(|(_, text)| text.as_str()));
        }
        found
    }

    /// Literals of constants that say their own name: `const A: &str = "A";`.
    pub(crate) fn namesakes(&self) -> impl Iterator<Item = &str> {
        let says_its_name =
            |(at, text): &&(usize, String)| self.code[..*at].ends_with(&format!("const {text}: &str = "));
        self.literals.iter().filter(says_its_name).map(|(_, text)| text.as_str())
    }

    pub(crate) fn line_of(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// Spaces in place of the text, lines kept.
fn blank(code: &mut String, text: &str) {
    code.extend(text.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
}

/// The length of the comment the text begins with.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    Some(at)
}

/// The string literal the text begins with: bytes of its opening, its inside and its closing.
fn string(text: &str) -> Option<(usize, usize, usize)> {
    let prefix = text.find(|c| !matches!(c, 'b' | 'c' | 'r')).filter(|length| *length <= 2)?;
    let raw = text[..prefix].contains('r');
    let hashes = if raw { text[prefix..].bytes().take_while(|byte| *byte == b'#').count() } else { 0 };
    let open = prefix + hashes + 1;
    if text.as_bytes().get(open - 1) != Some(&b'"') {
        return None;
    }
    if raw {
        let closing = format!("\"{}", "#".repeat(hashes));
        let inside = text[open..].find(&closing).unwrap_or(text.len() - open);
        return Some((open, inside, closing.len().min(text.len() - open - inside)));
    }
    let mut escaped = false;
    for (at, c) in text[open..].char_indices() {
        match c {
            '"' if !escaped => return Some((open, at, 1)),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

/// The length of the character literal the text begins with; lifetimes are none.
fn character(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('\'')?;
    if inside.starts_with('\\') {
        let end = inside.char_indices().skip(2).find(|(_, c)| *c == '\'')?;
        return Some(1 + end.0 + 1);
    }
    let c = inside.chars().next()?;
    inside[c.len_utf8()..].starts_with('\'').then_some(1 + c.len_utf8() + 1)
}

/// The block in braces the text begins with.
fn block(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..=at];
        }
    }
    text
}

/// The names of the path the text begins with, and its length.
fn path(text: &str) -> (Vec<String>, usize) {
    let mut names = Vec::new();
    let mut at = 0;
    loop {
        let name = word(&text[at..]);
        names.push(name.to_owned());
        at += name.len();
        let rest = &text[at..];
        if !rest.starts_with("::") || !rest[2..].starts_with(is_word) {
            return (names, at);
        }
        at += 2;
    }
}

/// Spreads a `use` tree out into the paths it names.
fn spread(tree: &str, before: &[String], line: usize, paths: &mut Vec<Path>) {
    let tree = tree.trim();
    let tree = tree.strip_prefix("::").unwrap_or(tree);
    if let Some(brace) = tree.find('{') {
        let mut names = before.to_vec();
        names.extend(
            tree[..brace].split("::").map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned),
        );
        let inside = block(&tree[brace..]).strip_prefix('{').and_then(|inside| inside.strip_suffix('}'));
        for branch in inside.into_iter().flat_map(branches) {
            spread(branch, &names, line, paths);
        }
        return;
    }
    let mut names = before.to_vec();
    let plain = tree.split(" as ").next().unwrap_or(tree);
    names.extend(plain.split("::").map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned));
    if names.len() > before.len() {
        paths.push(Path { line, names });
    }
}

/// The parts between the commas that are not inside further braces.
fn branches(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

fn names(source: &str) -> Vec<String> {
    Source::parse(source).paths().iter().map(|path| path.names.join("::")).collect()
}

#[test]
fn comments_and_literals_are_not_code() {
    let source = Source::parse(concat!(
        "a /* b /* c */ \"d\" */ \"e // \\\" f\" // g \"h\"\n",
        "r#\"i \" j\"# 'k' '\\'' b\"l\" &'m str"
    ));
    let words: Vec<&str> = source.words().into_iter().map(|(_, word)| word).collect();
    assert_eq!(words, ["a", "m", "str"]);
    let literals: Vec<&str> = source.literals.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(literals, ["e // \\\" f", "i \" j", "l"]);
    assert_eq!(source.line_of(source.literals[1].0), 2);
}

#[test]
fn use_trees_are_spread_out() {
    let source = "use crate::{a::{self, B as C}, d};\nuse ::e::f;\nfn g() -> crate::h::I { ::j::k() }";
    assert_eq!(names(source), ["crate::a::self", "crate::a::B", "crate::d", "e::f", "crate::h::I", "j::k"]);
    assert_eq!(names("fn f<'a>() -> impl A + use<'a> { b::c() }\nuse d::{e;"), ["b::c"]);
}

#[test]
fn test_modules_can_be_left_out() {
    let source =
        "a::b(\"X\");\n#[cfg(test)]\nmod tests { use c::d; fn e() { \"Y\" } }\n#[cfg(test)]\nmod f;\ng::h();";
    let source = Source::parse(source).without_tests();
    let names: Vec<String> = source.paths().iter().map(|path| path.names.join("::")).collect();
    assert_eq!(names, ["a::b", "g::h"]);
    assert_eq!(source.literals.len(), 1);
    assert_eq!(source.paths()[1].line, 6);
}

#[test]
fn literals_are_found_in_the_item_they_stand_in() {
    let source =
        Source::parse("fn code(&self) -> &str { match self { _ => \"A_B\" } } fn other() { \"C_D\" }");
    assert_eq!(source.literals_in("fn code("), ["A_B"]);
}
