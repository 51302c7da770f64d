//! Builds HTML. Only this file escapes text for HTML.

use std::fmt::{self, Display, Write as _};

/// HTML that is built piece by piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Html(String);

impl Html {
    /// Adds markup of adit's own.
    pub fn raw(&mut self, markup: &str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Adds untrusted text, escaped.
    pub fn text(&mut self, text: impl Display) -> &mut Self {
        // Writing to a String cannot fail.
        let _ = write!(Escaping(&mut self.0), "{text}");
        self
    }

    /// Adds an element with text.
    pub fn element(&mut self, name: &str, text: impl Display) -> &mut Self {
        self.raw("<").raw(name).raw(">").text(text).raw("</").raw(name).raw(">")
    }

    /// Adds a link. `address` must be adit's own, because its scheme is not checked.
    pub fn link(&mut self, address: impl Display, text: impl Display) -> &mut Self {
        self.raw("<a href=\"").text(address).raw("\">").text(text).raw("</a>")
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

struct Escaping<'s>(&'s mut String);

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for each in text.chars() {
            match each {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                each => self.0.push(each),
            }
        }
        Ok(())
    }
}

/// Returns the text, escaped for HTML.
pub fn escape(text: &str) -> String {
    let mut html = Html::default();
    html.text(text);
    html.into_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let mut html = Html::default();
        html.raw("<p>").text("<img src=x onerror='a()'>").link("/t?a=\"b\"&c", "<b>").element("td", 5).raw("</p>");
        assert_eq!(
            html.into_string(),
            "<p>&lt;img src=x onerror=&#39;a()&#39;&gt;<a href=\"/t?a=&quot;b&quot;&amp;c\">&lt;b&gt;</a><td>5</td></p>"
        );
    }
}
