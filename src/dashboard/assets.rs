//! The three files of the page: embedded, or read from a folder while a developer edits them.

use std::{borrow::Cow, fs, path::PathBuf};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
};
use sha2::{Digest, Sha256};

use super::policy;
use crate::html::{Html, escape};

const PAGE: &str = include_str!("ui/index.html");
const STYLE: &str = include_str!("ui/app.css");
const SCRIPT: &str = include_str!("ui/app.js");

/// Source of the dashboard's files. Default: the files in the binary.
#[derive(Clone, Debug, Default)]
pub struct Assets {
    /// Folder with `index.html`, `app.css` and `app.js`. `None`: the files in the binary.
    pub folder: Option<PathBuf>,
}

/// Kind of page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The page of a laptop's adit, for a browser that is signed in.
    SignedIn,
    /// The page for a browser that is not signed in: without data and without a script.
    SignedOut,
    /// The page of a relay.
    Relay,
}

impl Assets {
    /// Returns the answer to a request for a file. `None`: there is no such file.
    pub fn file(&self, path: &str, request: &HeaderMap) -> Option<Response<Bytes>> {
        let (name, kind, embedded) = match path {
            "/app.css" => ("app.css", "text/css; charset=utf-8", STYLE),
            "/app.js" => ("app.js", "text/javascript; charset=utf-8", SCRIPT),
            _ => return None,
        };
        let text = self.read(name, embedded);
        let digest = HEXLOWER.encode(&Sha256::digest(text.as_bytes())[..8]);
        let tag = HeaderValue::try_from(format!("\"{digest}\"")).expect("hexadecimal digits are a header's value");
        let has_it = request.get_all(IF_NONE_MATCH).iter().any(|given| {
            given.to_str().is_ok_and(|given| given.split(',').any(|each| each.trim().trim_start_matches("W/") == tag))
        });
        let mut response = match has_it {
            true => Response::new(Bytes::new()),
            false => Response::new(Bytes::from(text.into_owned())),
        };
        if has_it {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        policy::apply(&mut response);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(ETAG, tag);
        // Browsers may cache it, because it has no private data, but must revalidate it each time.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Some(response)
    }

    /// Returns the page with `main` in it. `refreshes`: the page reloads itself at once.
    pub fn page(&self, mode: Mode, title: &str, main: Html, refreshes: bool) -> String {
        let name = match mode {
            Mode::SignedIn => "laptop",
            Mode::SignedOut => "out",
            Mode::Relay => "relay",
        };
        let page = self.read("index.html", PAGE);
        let refresh = if refreshes { "<meta http-equiv=\"refresh\" content=\"0\">" } else { "" };
        let script = match mode {
            Mode::SignedOut => "",
            Mode::SignedIn | Mode::Relay => "<script src=\"/app.js\" defer></script>",
        };
        let nav = match mode {
            Mode::SignedIn => {
                "<nav aria-label=\"Views\"><a href=\"/\">Now</a><a href=\"/services\">Services</a>\
                 <a href=\"/requests\">Requests</a><a href=\"/log\">Log</a></nav>"
            }
            Mode::SignedOut | Mode::Relay => "",
        };
        // Insert the content last, so that placeholders in it are not replaced.
        page.replace("{{mode}}", name)
            .replace("{{refresh}}", refresh)
            .replace("{{script}}", script)
            .replace("{{nav}}", nav)
            .replacen("{{title}}", &escape(title), 1)
            .replacen("{{main}}", &main.into_string(), 1)
    }

    fn read(&self, name: &str, embedded: &'static str) -> Cow<'static, str> {
        let read = self.folder.as_ref().and_then(|folder| fs::read_to_string(folder.join(name)).ok());
        read.map_or(Cow::Borrowed(embedded), Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_files_are_small() {
        let size = PAGE.len() + STYLE.len() + SCRIPT.len();
        assert!(size < 80 * 1024, "{size} bytes");
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere_and_writes_no_markup() {
        for (name, text) in [("index.html", PAGE), ("app.css", STYLE), ("app.js", SCRIPT)] {
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "@import"] {
                assert!(!text.contains(word), "{name} has {word}");
            }
        }
        assert!(!PAGE.contains("://") && !STYLE.contains("://"), "a URL of elsewhere");
        assert!(!PAGE.contains(" style=") && !PAGE.contains(" on"), "the policy forbids both");
    }

    #[test]
    fn a_file_that_the_browser_has_is_not_sent_again() {
        let assets = Assets::default();
        let first = assets.file("/app.js", &HeaderMap::new()).unwrap();
        let tag = first.headers()[ETAG].clone();
        let again =
            |tag: HeaderValue| assets.file("/app.js", &HeaderMap::from_iter([(IF_NONE_MATCH, tag)])).unwrap().status();
        assert_eq!((first.status(), again(tag)), (StatusCode::OK, StatusCode::NOT_MODIFIED));
        assert_eq!(again(HeaderValue::from_static("\"other\"")), StatusCode::OK);
        assert!(assets.file("/index.html", &HeaderMap::new()).is_none());
    }

    #[test]
    fn a_text_in_the_page_is_not_a_place_for_another() {
        let mut main = Html::default();
        main.text("{{title}} {{main}} <b>");
        let page = Assets::default().page(Mode::SignedIn, "{{main}} <i>", main, false);
        assert!(page.contains("{{title}} {{main}} &lt;b&gt;") && !page.contains("<i>"), "{page}");
    }
}
