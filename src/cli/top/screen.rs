//! The screen of `adit top`: a header of four lines, a table, and a line for keys and messages.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line as TextLine, Span},
    widgets::{Clear, Paragraph, Wrap},
};

use super::{
    App, Mode, amount,
    panes::{self, Line, Mood, Pane},
};
use crate::printable;

/// Capabilities of the terminal: colour, and UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Whether to use colours.
    pub has_colours: bool,
    /// Whether the locale is UTF-8.
    pub has_unicode: bool,
}

impl Look {
    fn style(self, mood: Mood) -> Style {
        let colour = match mood {
            Mood::Plain => return Style::new(),
            Mood::Dim => return Style::new().add_modifier(Modifier::DIM),
            Mood::Good => Color::Green,
            Mood::Warn => Color::Yellow,
            Mood::Bad => Color::Red,
        };
        match (self.has_colours, mood) {
            (true, _) => Style::new().fg(colour),
            // Columns also show the state as a word.
            (false, Mood::Bad) => Style::new().add_modifier(Modifier::BOLD),
            (false, _) => Style::new(),
        }
    }

    /// Returns values as a bar chart in one line.
    pub fn spark(self, values: &[f64]) -> String {
        let bars: &[char] = match self.has_unicode {
            true => &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
            false => &['_', '.', '-', '=', '+', '*', '%', '#'],
        };
        let most = values.iter().copied().fold(0.0, f64::max);
        let bar = |value: &f64| match most > 0.0 {
            true => bars[((value / most * (bars.len() - 1) as f64).round() as usize).min(bars.len() - 1)],
            false => bars[0],
        };
        values.iter().map(bar).collect()
    }

    /// Returns the text with characters that the terminal can show.
    fn text(self, text: &str) -> String {
        if self.has_unicode {
            return text.to_owned();
        }
        text.chars().map(|each| if each.is_ascii() { each } else { '?' }).collect()
    }
}

/// Draws the screen.
pub fn draw(frame: &mut Frame, app: &mut App) {
    let areas =
        Layout::vertical([Constraint::Length(4), Constraint::Min(2), Constraint::Length(1)]).split(frame.area());
    header(frame, app, areas[0]);
    table(frame, app, areas[1]);
    footer(frame, app, areas[2]);
    match &mut app.mode {
        Mode::Detail(title, lines, scroll) => overlay(frame, title, lines, scroll, app.look),
        Mode::Help => overlay(frame, "Keys", &HELP.map(str::to_owned), &mut 0, app.look),
        _ => {}
    }
}

const HELP: [&str; 20] = [
    "Tab            next pane: Tunnels, Requests, Log",
    "j k, arrows    next and previous line",
    "g G            first and last line",
    "PgUp PgDn      a page up and down",
    "Enter          details",
    "/              filter; !word is the inverse",
    "Esc            end the filter, close the details",
    "e              errors only",
    "< >            sort by another column; again at the last column: reverse the order",
    "w              wide: columns are not cut",
    "o              open in the browser",
    "c              copy the URL",
    "y              copy the command",
    "s              stop the tunnel",
    "r              reconnect the tunnel, or replay the request",
    "p              pause the requests",
    "q, Ctrl-C      quit",
    "Ctrl-Z         suspend",
    "",
    "Esc closes this.",
];

fn header(frame: &mut Frame, app: &App, area: Rect) {
    let look = app.look;
    let mut first = vec![Span::styled("adit", Style::new().add_modifier(Modifier::BOLD))];
    if let Some(status) = &app.model.status {
        first.push(Span::raw(format!(" {}  ", status.version)));
        let is_production = status.contexts.iter().any(|context| context.is_default && context.production);
        let context = look.text(&printable::line(status.context.as_deref().unwrap_or("no context")));
        first.push(match is_production {
            true => {
                Span::styled(format!(" PRODUCTION {context} "), look.style(Mood::Bad).add_modifier(Modifier::REVERSED))
            }
            false => Span::raw(context),
        });
        let address = status.http.first().map(ToString::to_string).unwrap_or_default();
        first.push(Span::raw(format!("  {address}  ")));
        first.push(match &status.rejected {
            Some(_) => Span::styled("configuration not applied", look.style(Mood::Bad)),
            None => Span::raw(format!("configuration of {}", status.loaded_at)),
        });
    }
    if !app.is_connected {
        first.push(Span::styled("  NOT CONNECTED: as it was", look.style(Mood::Bad).add_modifier(Modifier::BOLD)));
    }
    let now = jiff::Timestamp::now();
    let width = usize::from(area.width);
    let shown = (width / 5).clamp(8, 60);
    let requests = app.model.rates(|second| f64::from(second.requests), shown, now);
    let errors = app.model.rates(|second| f64::from(second.errors), shown, now);
    let mean = |values: &[f64]| values.iter().rev().take(5).sum::<f64>() / 5.0;
    let of = |read: fn(&crate::admin::api::answers::Second) -> f64| mean(&app.model.rates(read, 5, now)) as u64;
    let (down, up) = (of(|second| second.bytes_down as f64), of(|second| second.bytes_up as f64));
    let arrows = if look.has_unicode { ("↓", "↑") } else { ("down", "up") };
    let connections = app.model.seconds.back().map_or(0, |second| second.connections);
    let mood = if mean(&errors) > 0.0 { Mood::Bad } else { Mood::Plain };
    let second = vec![
        Span::raw(format!("req/s {:>6.1} {} ", mean(&requests), look.spark(&requests))),
        Span::styled(format!("err/s {:>5.1} {} ", mean(&errors), look.spark(&errors[shown / 2..])), look.style(mood)),
        Span::raw(format!("{} {}/s {} {}/s  connections {connections}", arrows.0, amount(down), arrows.1, amount(up))),
    ];
    let third = match app.model.attention.as_slice() {
        [] => Span::styled("nothing needs attention", look.style(Mood::Dim)),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
            let title = look.text(&printable::line(&first.title));
            Span::styled(format!("needs attention: {title}{more}"), look.style(Mood::Bad))
        }
    };
    let view = &app.views[app.pane as usize];
    let mut fourth = Vec::new();
    for pane in Pane::ALL {
        let style = match pane == app.pane {
            true => Style::new().add_modifier(Modifier::REVERSED),
            false => Style::new(),
        };
        fourth.extend([Span::styled(format!(" {} ", pane.title()), style), Span::raw(" ")]);
    }
    for (is_on, text) in [
        (!view.filter.is_empty(), format!(" /{}", view.filter)),
        (view.only_errors, " errors only".to_owned()),
        (app.model.paused.is_some(), " paused".to_owned()),
        (app.is_wide, " wide".to_owned()),
    ] {
        if is_on {
            fourth.push(Span::styled(look.text(&text), look.style(Mood::Warn)));
        }
    }
    let lines = [first, second, vec![third], fourth].map(TextLine::from);
    frame.render_widget(Paragraph::new(lines.to_vec()), area);
}

/// Returns the columns that fit: index, width, and whether it is aligned to the right.
fn fitting(pane: Pane, width: usize, is_wide: bool, lines: &[Line]) -> Vec<(usize, usize, bool)> {
    let mut left = width;
    let mut found = Vec::new();
    let columns = pane.columns();
    for (at, (_, wanted)) in columns.iter().enumerate() {
        let is_right = *wanted < 0;
        let mut wanted = usize::from(wanted.unsigned_abs());
        if is_wide {
            let longest = lines.iter().take(200).filter_map(|line| line.cells.get(at)).map(|cell| cell.chars().count());
            wanted = wanted.max(longest.max().unwrap_or(0));
        }
        let gap = usize::from(at > 0);
        // The last column gets the rest, if that is wide enough to read.
        let is_last = at + 1 == columns.len();
        if wanted + gap > left {
            if at == 0 || left >= gap + 12 && !is_right {
                found.push((at, left.saturating_sub(gap), is_right));
            }
            return found;
        }
        found.push((at, if is_last { left - gap } else { wanted }, is_right));
        left -= wanted + gap;
    }
    found
}

fn cell(text: &str, width: usize, is_right: bool) -> String {
    let count = text.chars().count();
    match (count > width, is_right) {
        (true, _) => {
            let kept: String = text.chars().take(width.saturating_sub(1)).collect();
            format!("{kept}~")
        }
        (false, true) => format!("{}{text}", " ".repeat(width - count)),
        (false, false) => format!("{text}{}", " ".repeat(width - count)),
    }
}

fn table(frame: &mut Frame, app: &mut App, area: Rect) {
    let lines = panes::lines(&app.model, app.pane, &app.views[app.pane as usize]);
    let columns = fitting(app.pane, usize::from(area.width), app.is_wide, &lines);
    let view = app.views[app.pane as usize].clone();
    let head: Vec<String> = columns
        .iter()
        .map(|(at, width, is_right)| {
            let name = app.pane.columns()[*at].0;
            let mark = match view.sort {
                Some((column, is_down)) if column == *at => {
                    if is_down {
                        " v"
                    } else {
                        " ^"
                    }
                }
                _ => "",
            };
            cell(&format!("{name}{mark}"), *width, *is_right)
        })
        .collect();
    let height = usize::from(area.height).saturating_sub(1);
    app.height = height;
    let selected = app.select(&lines);
    let offset = app.offset(selected, lines.len(), height);
    let mut text = vec![TextLine::styled(head.join(" "), Style::new().add_modifier(Modifier::BOLD))];
    if lines.is_empty() {
        text.push(TextLine::styled(empty(app.pane, view.filter.is_empty()), app.look.style(Mood::Dim)));
    }
    for (at, line) in lines.iter().enumerate().skip(offset).take(height) {
        let cells: Vec<String> = columns
            .iter()
            .map(|(column, width, is_right)| {
                let text = line.cells.get(*column).map_or("", String::as_str);
                cell(&app.look.text(text), *width, *is_right)
            })
            .collect();
        let mut style = app.look.style(line.mood);
        if Some(at) == selected {
            style = style.add_modifier(Modifier::REVERSED);
        }
        text.push(TextLine::styled(cells.join(" "), style));
    }
    frame.render_widget(Paragraph::new(text), area);
}

fn empty(pane: Pane, is_unfiltered: bool) -> &'static str {
    match (pane, is_unfiltered) {
        (_, false) => "nothing is as you filter: Esc ends the filter",
        (Pane::Tunnels, true) => "no tunnel: one opens with the first connection to a Service",
        (Pane::Requests, true) => "no request yet",
        (Pane::Log, true) => "no line yet",
    }
}

fn footer(frame: &mut Frame, app: &App, area: Rect) {
    let line = match (&app.mode, &app.message) {
        (Mode::Filter(text), _) => TextLine::raw(format!("/{text}_")),
        (Mode::Ask(question, _), _) => {
            TextLine::styled(format!("{question} y/n"), Style::new().add_modifier(Modifier::BOLD))
        }
        (_, Some(message)) => TextLine::raw(app.look.text(&printable::line(message))),
        _ => TextLine::styled(
            "Tab pane  Enter details  / filter  e errors  s stop  r reconnect  ? keys  q quit",
            app.look.style(Mood::Dim),
        ),
    };
    frame.render_widget(Paragraph::new(line), area);
}

/// Draws text over the whole screen, from the row `scroll` on. Lowers `scroll` to the last screen of text.
fn overlay(frame: &mut Frame, title: &str, lines: &[String], scroll: &mut u16, look: Look) {
    let area = frame.area();
    frame.render_widget(Clear, area);
    let head = TextLine::styled(
        look.text(&printable::line(title)),
        Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED),
    );
    let mut text = vec![head, TextLine::raw("")];
    text.extend(lines.iter().map(|line| TextLine::raw(look.text(&printable::line(line)))));
    let text = Paragraph::new(text).wrap(Wrap { trim: false });
    let rows = u16::try_from(text.line_count(area.width)).unwrap_or(u16::MAX);
    *scroll = (*scroll).min(rows.saturating_sub(area.height));
    frame.render_widget(text.scroll((*scroll, 0)), area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};

    use super::*;
    use crate::admin::api::feed::Snapshot;

    fn snapshot() -> Snapshot {
        let tunnel = |id: &str, state: &str, error: Option<&str>| {
            serde_json::json!({
                "id": id, "target": id, "state": state, "pods": ["web-6d5f-a1"], "pod": "web-6d5f-a1", "protocol": "spdy",
                "connections": 1, "streams": 2, "streams_total": 9, "leases": 1, "requests": 120, "errors": 1,
                "recent_requests": 9, "recent_errors": 0, "context": "demo", "bytes_up": 2048, "bytes_down": 1048576,
                "first_byte_ms": {"count": 9, "p50": 12.0, "p95": 20.0, "p99": 30.0}, "idle_seconds": null,
                "closes_in_seconds": null, "last_error": error
            })
        };
        serde_json::from_value(serde_json::json!({
            "format": 1,
            "status": {
                "version": "0.1.0", "pid": 1, "started": "2026-01-01T00:00:00Z", "config": null, "kubeconfig": [],
                "http": ["127.0.0.1:8989"], "tcp": [], "context": "demo", "loaded_at": "13:01:02", "rejected": null,
                "local": [], "contexts": []
            },
            "sign_ins": [],
            "attention": [{"kind": "tunnel", "title": "demo/shop/nothing cannot be reached", "cause": null, "hint": null,
                "command": null, "tunnel": "demo/shop/nothing"}],
            "tunnels": [tunnel("demo/shop/web:80", "running", None), tunnel("demo/shop/nothing", "failed", Some("no service"))],
            "requests": [], "seconds": [], "first_byte_ms": {"count": 0, "p50": null, "p95": null, "p99": null}
        }))
        .unwrap()
    }

    fn shown(width: u16, height: u16, look: Look, change: impl FnOnce(&mut App)) -> Vec<String> {
        let mut app = App::new(look);
        app.model.snapshot(snapshot());
        app.is_connected = true;
        change(&mut app);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &mut app)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    const PLAIN: Look = Look { has_colours: false, has_unicode: false };

    #[test]
    fn eighty_columns_are_enough() {
        let lines = shown(80, 24, PLAIN, |_| {});
        assert_eq!(lines[0], "adit 0.1.0  demo  127.0.0.1:8989  configuration of 13:01:02");
        assert!(lines[1].starts_with("req/s    0.0 ________________ err/s"), "{}", lines[1]);
        assert_eq!(lines[2], "needs attention: demo/shop/nothing cannot be reached");
        assert_eq!(lines[3], " Tunnels   Requests   Log");
        assert_eq!(lines[4], "TUNNEL                           STATE      STREAMS     REQS    ERR     IDLE");
        assert_eq!(lines[5], "demo/shop/nothing                failed           2      120      1   in use");
        assert_eq!(lines[6], "demo/shop/web:80                 running          2      120      1   in use");
        assert!(lines[23].contains("q quit") || lines[23].contains("? keys"), "{}", lines[23]);
        assert!(lines.iter().all(|line| line.is_ascii()), "{lines:#?}");
    }

    #[test]
    fn a_narrow_terminal_leaves_columns_out_and_a_wide_one_has_them_all() {
        let narrow = shown(40, 12, PLAIN, |_| {});
        assert!(narrow[4].starts_with("TUNNEL") && !narrow[4].contains("STREAMS"), "{}", narrow[4]);
        let wide = shown(200, 50, PLAIN, |_| {});
        assert!(wide[4].contains("TRANSPORT") && wide[6].contains("web-6d5f-a1"), "{}", wide[6]);
        for (width, height) in [(1, 1), (5, 3), (20, 6)] {
            shown(width, height, PLAIN, |app| app.mode = Mode::Help);
        }
    }

    #[test]
    fn a_terminal_of_unicode_has_bars() {
        let look = Look { has_colours: true, has_unicode: true };
        assert_eq!(look.spark(&[0.0, 1.0, 2.0]), "▁▅█");
        assert_eq!(PLAIN.spark(&[0.0, 1.0, 2.0]), "_+#");
        assert_eq!(look.spark(&[0.0, 0.0]), "▁▁");
        assert_eq!(PLAIN.text("über"), "?ber");
    }

    #[test]
    fn the_end_of_long_details_can_be_reached() {
        let mut app = App::new(PLAIN);
        app.mode = Mode::Detail("title".to_owned(), vec![format!("{}end", "word ".repeat(99))], 0);
        let mut terminal = Terminal::new(TestBackend::new(20, 6)).unwrap();
        for _ in 0..99 {
            app.key(KeyCode::Down.into());
            terminal.draw(|frame| draw(frame, &mut app)).unwrap();
        }
        let last: String = (0..20).map(|x| terminal.backend().buffer()[(x, 5)].symbol().to_owned()).collect();
        assert_eq!(last.trim(), "word word word end");
    }

    #[test]
    fn a_lost_connection_is_said() {
        let lines = shown(120, 24, PLAIN, |app| app.is_connected = false);
        assert!(lines[0].contains("NOT CONNECTED"), "{}", lines[0]);
    }
}
