//! Configuration snippets: raw nginx text, which a gateway that is no nginx cannot obey.
//!
//! A directive known to change no traffic is accepted without effect. Every other one stops the
//! start, for without it clients would be treated otherwise than the operator wrote (`deny` lets all
//! in), until it is named under `streamgate.ignored_directives`. Only the outermost directives are
//! judged: what a block holds goes with the block.

/// Directives of a stream block that change no traffic.
const HARMLESS_STREAM: &[&str] = &[
    "access_log",
    "error_log",
    "log_format",
    "lua_add_variable",
    "lua_capture_error_log",
    "lua_code_cache",
    "lua_malloc_trim",
    "lua_max_pending_timers",
    "lua_max_running_timers",
    "lua_package_cpath",
    "lua_package_path",
    "lua_regex_cache_max_entries",
    "lua_regex_match_limit",
    "lua_sa_restart",
    "lua_shared_dict",
    "lua_socket_log_errors",
    "lua_thread_cache_max_entries",
    "map_hash_bucket_size",
    "map_hash_max_size",
    "open_log_file_cache",
    "variables_hash_bucket_size",
    "variables_hash_max_size",
];

/// Directives of the main context that change no traffic.
const HARMLESS_MAIN: &[&str] = &[
    "daemon",
    "debug_points",
    "env",
    "error_log",
    "load_module",
    "lock_file",
    "master_process",
    "pcre_jit",
    "pid",
    "ssl_engine",
    "ssl_object_cache_inheritable",
    "thread_pool",
    "timer_resolution",
    "user",
    "worker_cpu_affinity",
    "worker_priority",
    "worker_rlimit_core",
    "worker_rlimit_nofile",
    "worker_rlimit_sigpending",
    "working_directory",
];

/// The context a snippet is put into.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Context {
    /// `main_configuration_snippet`.
    Main,
    /// `stream_configuration_snippet`.
    Stream,
}

impl Context {
    /// Whether leaving `directive` out changes nothing for a client.
    pub(super) fn harmless(self, directive: &str) -> bool {
        let list = match self {
            Self::Main => HARMLESS_MAIN,
            Self::Stream => HARMLESS_STREAM,
        };
        list.contains(&directive)
    }
}

/// An outermost directive of a snippet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Directive {
    /// Its first word.
    pub(super) name: String,
    /// The line of the snippet it begins on, from 1.
    pub(super) line: usize,
    /// Its words, to show it by.
    pub(super) text: String,
}

/// Why a snippet cannot be read; nginx would refuse it too.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum SnippetError {
    #[error("line {0}: the directive has no `;` at its end")]
    Unfinished(usize),
    #[error("line {0}: the block is not closed by `}}`")]
    OpenBlock(usize),
    #[error("line {0}: `}}` closes no block")]
    StrayBrace(usize),
    #[error("line {0}: the quote is not closed")]
    OpenQuote(usize),
}

/// The outermost directives, in order.
pub(super) fn directives(text: &str) -> Result<Vec<Directive>, SnippetError> {
    let mut scanner = Scanner { rest: text, line: 1 };
    let mut found = Vec::new();
    let mut open: Option<Directive> = None;
    // The lines on which the blocks around the present place were opened.
    let mut blocks: Vec<usize> = Vec::new();
    while let Some((line, token)) = scanner.token()? {
        match token {
            Token::Word(word) => match &mut open {
                Some(directive) => {
                    directive.text.push(' ');
                    directive.text.push_str(&word);
                }
                None => open = Some(Directive { name: word.clone(), line, text: word }),
            },
            Token::Semicolon => close(open.take(), &blocks, &mut found),
            Token::Open => {
                let lua = open.as_ref().is_some_and(|directive| directive.name.ends_with("_by_lua_block"));
                close(open.take(), &blocks, &mut found);
                if lua {
                    scanner.skip_lua(line)?;
                } else {
                    blocks.push(line);
                }
            }
            Token::Close if open.is_some() => return Err(SnippetError::Unfinished(line)),
            Token::Close => drop(blocks.pop().ok_or(SnippetError::StrayBrace(line))?),
        }
    }
    match (open, blocks.last()) {
        (Some(directive), _) => Err(SnippetError::Unfinished(directive.line)),
        (None, Some(line)) => Err(SnippetError::OpenBlock(*line)),
        (None, None) => Ok(found),
    }
}

fn close(directive: Option<Directive>, blocks: &[usize], found: &mut Vec<Directive>) {
    if blocks.is_empty() {
        found.extend(directive);
    }
}

enum Token {
    Word(String),
    Semicolon,
    Open,
    Close,
}

struct Scanner<'t> {
    rest: &'t str,
    line: usize,
}

impl Scanner<'_> {
    fn bump(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn skip_line(&mut self) {
        while self.peek().is_some_and(|c| c != '\n') {
            self.bump();
        }
    }

    /// The next token with its line (nginx `core/ngx_conf_file.c`, `ngx_conf_read_token`).
    fn token(&mut self) -> Result<Option<(usize, Token)>, SnippetError> {
        loop {
            let line = self.line;
            let Some(c) = self.peek() else { return Ok(None) };
            let token = match c {
                '#' => {
                    self.skip_line();
                    continue;
                }
                ';' => Token::Semicolon,
                '{' => Token::Open,
                '}' => Token::Close,
                '"' | '\'' => {
                    self.bump();
                    return Ok(Some((line, Token::Word(self.quoted(c, line)?))));
                }
                c if c.is_ascii_whitespace() => {
                    self.bump();
                    continue;
                }
                _ => return Ok(Some((line, Token::Word(self.word())))),
            };
            self.bump();
            return Ok(Some((line, token)));
        }
    }

    /// Up to `end`, which a backslash protects.
    fn quoted(&mut self, end: char, line: usize) -> Result<String, SnippetError> {
        let mut word = String::new();
        loop {
            match self.bump() {
                None => return Err(SnippetError::OpenQuote(line)),
                Some(c) if c == end => return Ok(word),
                Some('\\') => word.extend(self.bump()),
                Some(c) => word.push(c),
            }
        }
    }

    /// An unquoted word; `${name}` may stand in it.
    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) = self.peek() {
            let variable = c == '{' && word.ends_with('$');
            if c.is_ascii_whitespace() || c == ';' || (c == '{' && !variable) {
                break;
            }
            self.bump();
            word.push(c);
            if c == '\\' {
                word.extend(self.bump());
            }
        }
        word
    }

    /// Skips Lua code up to the brace that closes its block: strings and comments may hold braces.
    fn skip_lua(&mut self, line: usize) -> Result<(), SnippetError> {
        let mut depth = 1_usize;
        while depth > 0 {
            match self.bump().ok_or(SnippetError::OpenBlock(line))? {
                '{' => depth += 1,
                '}' => depth -= 1,
                quote @ ('"' | '\'') => drop(self.quoted(quote, self.line)?),
                '[' => self.skip_long_bracket(line)?,
                '-' if self.peek() == Some('-') => {
                    self.bump();
                    if self.peek() == Some('[')
                        && long_bracket(self.rest.get(1..).unwrap_or_default()).is_some()
                    {
                        self.bump();
                        self.skip_long_bracket(line)?;
                    } else {
                        self.skip_line();
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// After a `[`: skips `[[ … ]]` or `[==[ … ]==]` where it is one.
    fn skip_long_bracket(&mut self, line: usize) -> Result<(), SnippetError> {
        let Some(level) = long_bracket(self.rest) else { return Ok(()) };
        let end = format!("]{}]", "=".repeat(level));
        let length = self.rest.find(&end).ok_or(SnippetError::OpenQuote(line))? + end.len();
        let (skipped, rest) = self.rest.split_at(length);
        self.line += skipped.matches('\n').count();
        self.rest = rest;
        Ok(())
    }
}

/// The level of the long bracket whose first `[` stands just before `text`.
fn long_bracket(text: &str) -> Option<usize> {
    let level = text.bytes().take_while(|b| *b == b'=').count();
    (text.as_bytes().get(level) == Some(&b'[')).then_some(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(usize, &str)]) {
        let found = directives(text).unwrap();
        let found: Vec<_> = found.iter().map(|it| (it.line, it.text.as_str())).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn outermost_directives_are_found() {
        check("", &[]);
        check("# deny all;\n  # more\n", &[]);
        check(
            "proxy_timeout 10m;\n\nallow 10.0.0.0/8; deny all;",
            &[(1, "proxy_timeout 10m"), (3, "allow 10.0.0.0/8"), (3, "deny all")],
        );
        check("log_format x '$a; {}' \"b#\";", &[(1, "log_format x $a; {} b#")]);
        check(
            "map $a $b {\n default 1;\n x { y 1; }\n}\nserver\n{ listen 1; }",
            &[(1, "map $a $b"), (5, "server")],
        );
        check("set $x ${y}z;", &[(1, "set $x ${y}z")]);
        check("log_format a b#c;", &[(1, "log_format a b#c")]);
        check(
            "init_by_lua_block {\n a = \"}\" -- }\n --[[ } ]] b = [=[ } ]=] c = {1, t[1]}\n}\nallow all;",
            &[(1, "init_by_lua_block"), (5, "allow all")],
        );
    }

    #[test]
    fn broken_snippets_are_told_by_line() {
        assert_eq!(directives("allow all"), Err(SnippetError::Unfinished(1)));
        assert_eq!(directives("a 1;\nserver {\n b 1;"), Err(SnippetError::OpenBlock(2)));
        assert_eq!(directives("a 1;\n}"), Err(SnippetError::StrayBrace(2)));
        assert_eq!(directives("a 'x;\n"), Err(SnippetError::OpenQuote(1)));
        assert_eq!(directives("server { listen 1 }"), Err(SnippetError::Unfinished(1)));
        assert_eq!(directives("x_by_lua_block { {"), Err(SnippetError::OpenBlock(1)));
    }

    #[test]
    fn only_what_is_known_harmless_is_harmless() {
        for name in [
            "allow",
            "deny",
            "listen",
            "server",
            "proxy_timeout",
            "preread_timeout",
            "resolver",
            "include",
            "tcp_nodelay",
        ] {
            assert!(!Context::Stream.harmless(name) && !Context::Main.harmless(name), "{name}");
        }
        assert!(Context::Stream.harmless("log_format") && !Context::Main.harmless("log_format"));
    }

    proptest::proptest! {
        /// Whatever an operator pastes is read to its end or told as broken.
        #[test]
        fn any_text_is_read_or_told(text in "([a-z${}\\[\\]=;#'\"\\\\ \n-]|_by_lua_block \\{){0,40}") {
            let _ = directives(&text);
        }
    }
}
