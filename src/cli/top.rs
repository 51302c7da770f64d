//! `adit top`: shows the running adit in a terminal, live.

mod actions;
mod clipboard;
mod model;
mod panes;
mod screen;
mod terminal;

use std::{
    io::{self, BufRead, IsTerminal, Write, stdin, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::{
    runtime::Builder,
    signal::unix::SignalKind,
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until, timeout},
};

use self::{
    actions::{Outcome, Wish, act},
    model::Model,
    panes::{Line, Pane, View},
    screen::Look,
    terminal::Screen,
};
use super::{
    Globals,
    report::{CliError, colours, has_unicode},
    run::signals::{Signals, code_of},
    status, ui,
};
use crate::admin::{
    api::{
        answers::{Log, LogRow, RequestAnswer, Requests, Row, TunnelAnswer},
        feed::{BEAT_AFTER, MOST_ROWS},
    },
    socket::{self, CallError, Events, Update},
};

/// Minimum time between two drawings.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// Maximum time between two drawings: rates and idle times change even without events.
const DRAW_AT_LEAST: Duration = Duration::from_secs(1);

/// Pause before reconnecting.
const RETRY: Duration = Duration::from_secs(1);

/// Maximum time between a signal and the end, if a drawing blocks.
const STALLED: Duration = Duration::from_secs(1);

/// Time without an event after which adit counts as hanging.
const SILENCE: Duration = BEAT_AFTER.saturating_mul(2);

/// Minimum time between two requests for the rows that events leave out.
const READ_EVERY: Duration = Duration::from_secs(2);

/// How long a message is shown.
const MESSAGE: Duration = Duration::from_secs(4);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit top\n  adit top --listen 127.0.0.1:9999\n\n? lists the keys. Without a terminal it is 'adit status'."
)]
pub struct Args {}

/// The part of the screen that handles keys.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    Table,
    /// The filter while the user types it.
    Filter(String),
    /// A confirmation prompt, and the API path to POST to after a yes.
    Ask(String, String),
    /// Title, lines, and scroll position.
    Detail(String, Vec<String>, u16),
    Help,
}

/// State of the screen.
struct App {
    model: Model,
    look: Look,
    pane: Pane,
    /// The user's choices, by pane.
    views: [View; 3],
    /// Key of the selected line, and its last position, by pane.
    selected: [(Option<String>, usize); 3],
    offsets: [usize; 3],
    mode: Mode,
    message: Option<String>,
    is_wide: bool,
    is_connected: bool,
    /// Number of lines that the table can show.
    height: usize,
}

/// News from the adit on the screen.
enum News {
    Event(Update),
    /// All kept requests and log lines, newest first: events leave some out.
    All(Vec<Row>, Vec<LogRow>),
}

pub async fn run(globals: &Globals, _: Args) -> Result<ExitCode, CliError> {
    if !stdout().is_terminal() || !stdin().is_terminal() {
        return status::once(globals).await.map(|()| ExitCode::SUCCESS);
    }
    let socket = choose(globals).await?;
    let look = Look { has_colours: colours(&stdout()), has_unicode: has_unicode(|name| std::env::var(name).ok()) };
    // Register before changing the terminal, so that no signal is lost in between.
    let mut ends = Signals::new(ENDS)?;
    end_though_stalled()?;
    let mut app = App::new(look);
    let mut screen = Screen::open()?;
    let (updates_tx, mut updates) = mpsc::channel(16);
    let mut reading = tokio::spawn(read(socket.clone(), updates_tx));
    let mut keys = keys();
    // Actions run beside the key loop, so that an adit that hangs does not prevent quitting.
    let mut acting = FuturesUnordered::new();
    let mut message_until = Instant::now();
    let mut drawn = None::<Instant>;
    let mut is_dirty = true;
    let mut code = 0;
    let failed = || CliError::new("adit top has failed: the message above says where");
    loop {
        // A panic of another thread has restored the terminal.
        if !screen.is_held() {
            return Err(failed());
        }
        if is_dirty && drawn.is_none_or(|drawn| drawn.elapsed() >= DRAW_EVERY) {
            screen.terminal.draw(|frame| screen::draw(frame, &mut app))?;
            (drawn, is_dirty) = (Some(Instant::now()), false);
        }
        let wait = if is_dirty { DRAW_EVERY } else { DRAW_AT_LEAST };
        let next = drawn.map_or_else(Instant::now, |drawn| drawn + wait);
        let wish = tokio::select! {
            Some(update) = updates.recv() => {
                app.take(update);
                None
            }
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => app.key(key),
                Some(_) => None,
                // Standard input has ended.
                None => Some(Wish::Quit),
            },
            Some(outcome) = acting.next(), if !acting.is_empty() => {
                match outcome {
                    Outcome::Said(said) => (app.message, message_until) = (Some(said), Instant::now() + MESSAGE),
                    // Do not replace a filter that the user has begun to type.
                    Outcome::Shows(title, lines) if app.mode == Mode::Table => app.mode = Mode::Detail(title, lines, 0),
                    Outcome::Shows(..) => {}
                }
                None
            }
            () = sleep_until(next) => None,
            // The task ends only by a panic, because `updates` is still open.
            _ = &mut reading => return Err(failed()),
            number = ends.next() => {
                code = code_of(number);
                Some(Wish::Quit)
            }
        };
        is_dirty = true;
        if message_until <= Instant::now() {
            app.message = None;
        }
        match wish {
            None => {}
            Some(Wish::Quit) => break,
            Some(Wish::Suspend) => {
                screen.suspend()?;
                drawn = None;
            }
            Some(wish) => acting.push(act(socket.clone(), app.pane, wish)),
        }
    }
    reading.abort();
    Ok(ExitCode::from(code))
}

/// Returns the socket of the selected adit. Asks the user if several run.
async fn choose(globals: &Globals) -> Result<PathBuf, CliError> {
    let mut found = status::find(globals).await?;
    if found.len() > 1 {
        let mut out = stdout();
        for (at, (_, status)) in found.iter().enumerate() {
            let address = status.overview.http.first().map(ToString::to_string).unwrap_or_default();
            let context = status.overview.context.as_deref().unwrap_or("no context");
            writeln!(out, "{}  {address}  {context}  pid {}", at + 1, status.overview.pid)?;
        }
        write!(out, "which one? [1] ")?;
        out.flush()?;
        // In another thread, because this one waits for signals.
        let reading = spawn_blocking(|| {
            let mut answer = String::new();
            stdin().lock().read_line(&mut answer).map(|_| answer)
        });
        let answer = reading.await.map_err(io::Error::other)??;
        let chosen = if answer.trim().is_empty() { Some(1) } else { answer.trim().parse::<usize>().ok() };
        match chosen.filter(|chosen| (1..=found.len()).contains(chosen)) {
            Some(chosen) => return Ok(found.swap_remove(chosen - 1).0),
            None => return Err(CliError::usage(format!("{:?} is none of the numbers", answer.trim()))),
        }
    }
    Ok(found.swap_remove(0).0)
}

/// Reads events, and reconnects, until the receiver is dropped.
async fn read(socket: PathBuf, updates: mpsc::Sender<Option<News>>) {
    loop {
        if let Ok(events) = socket::events(&socket).await {
            follow(&socket, events, &updates).await;
        }
        if updates.send(None).await.is_err() {
            return;
        }
        sleep(RETRY).await;
    }
}

/// Passes events on until they end or stop, or the receiver is dropped.
async fn follow(socket: &Path, mut events: Events, updates: &mpsc::Sender<Option<News>>) {
    // When to request the rows that events have left out. `None`: they have left nothing out.
    let (mut due, mut read) = (None, None::<Instant>);
    loop {
        let news = tokio::select! {
            next = timeout(SILENCE, events.next()) => {
                let Ok(Some(update)) = next else { return };
                if leaves_out(&update) {
                    due.get_or_insert_with(|| read.map_or_else(Instant::now, |read| read + READ_EVERY));
                }
                News::Event(update)
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let all = async {
                    let requests = socket::get::<Requests>(socket, "requests").await?.requests;
                    Ok::<_, CallError>(News::All(requests, socket::get::<Log>(socket, "log").await?.log))
                };
                let Ok(Ok(all)) = timeout(SILENCE, all).await else { return };
                (due, read) = (None, Some(Instant::now()));
                all
            }
        };
        if updates.send(Some(news)).await.is_err() {
            return;
        }
    }
}

/// Returns whether adit has more rows than the event: an event has only the newest ones, and a snapshot has no log lines.
fn leaves_out(update: &Update) -> bool {
    match update {
        Update::Snapshot(_) => true,
        Update::Change(change) => change.skipped > 0 || change.log.len() >= MOST_ROWS,
    }
}

/// Reads keys in a thread, because reading from a terminal blocks.
fn keys() -> mpsc::Receiver<Event> {
    let (keys_tx, keys) = mpsc::channel(64);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if keys_tx.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}

/// Starts a thread that ends the process [`STALLED`] after a signal. If the terminal takes no output, a drawing blocks the main
/// loop, which then does not see the signal.
fn end_though_stalled() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let mut ends = Signals::new(&[ENDS, &[SignalKind::interrupt, SignalKind::terminate]].concat())?;
    drop(entered);
    std::thread::spawn(move || {
        let number = runtime.block_on(async {
            let number = ends.next().await;
            sleep(STALLED).await;
            number
        });
        terminal::leave_unread();
        std::process::exit(code_of(number).into());
    });
    Ok(())
}

/// Signals that end it, in addition to those that end every command.
const ENDS: &[fn() -> SignalKind] = &[SignalKind::hangup, SignalKind::quit];

/// Returns a number of bytes in few characters: `1.5M`.
fn amount(bytes: u64) -> String {
    let (amount, unit) = status::scaled(bytes);
    let name = ["B", "K", "M", "G", "T"][unit];
    if unit == 0 { format!("{bytes}B") } else { format!("{amount:.1}{name}") }
}

impl App {
    fn new(look: Look) -> Self {
        Self {
            model: Model::default(),
            look,
            pane: Pane::default(),
            views: Default::default(),
            selected: Default::default(),
            offsets: [0; 3],
            mode: Mode::Table,
            message: None,
            is_wide: false,
            is_connected: false,
            height: 1,
        }
    }

    /// Applies news. `None`: disconnected.
    fn take(&mut self, news: Option<News>) {
        self.is_connected = news.is_some();
        match news {
            Some(News::Event(Update::Snapshot(snapshot))) => self.model.snapshot(*snapshot),
            Some(News::Event(Update::Change(change))) => self.model.change(*change),
            Some(News::All(requests, lines)) => {
                self.model.all_requests(requests);
                self.model.log(lines);
            }
            None => {}
        }
    }

    /// Returns the position of the selected line: that of its key, else its last position.
    fn select(&mut self, lines: &[Line]) -> Option<usize> {
        let (key, before) = &mut self.selected[self.pane as usize];
        let found = key.as_ref().and_then(|key| lines.iter().position(|line| line.key == *key));
        let at = found.or((!lines.is_empty()).then(|| (*before).min(lines.len() - 1)))?;
        // A view at the top has no key, so it stays there and shows new rows.
        if key.is_some() {
            *key = Some(lines[at].key.clone());
        }
        *before = at;
        Some(at)
    }

    /// Returns the first visible line, chosen so that the selected one is visible.
    fn offset(&mut self, selected: Option<usize>, count: usize, height: usize) -> usize {
        let offset = &mut self.offsets[self.pane as usize];
        let selected = selected.unwrap_or(0);
        *offset = (*offset).min(count.saturating_sub(height)).min(selected);
        if height > 0 && selected >= *offset + height {
            *offset = selected + 1 - height;
        }
        *offset
    }

    fn lines(&self) -> Vec<Line> {
        panes::lines(&self.model, self.pane, &self.views[self.pane as usize])
    }

    fn move_by(&mut self, by: isize) {
        let lines = self.lines();
        let Some(at) = self.select(&lines) else { return };
        let to = at.saturating_add_signed(by).min(lines.len() - 1);
        self.selected[self.pane as usize] = ((to > 0).then(|| lines[to].key.clone()), to);
    }

    /// Returns the key of the selected line.
    fn current(&mut self) -> Option<String> {
        let lines = self.lines();
        self.select(&lines).map(|at| lines[at].key.clone())
    }

    /// Returns the tunnel of the selected line.
    fn tunnel(&mut self) -> Option<String> {
        let key = self.current()?;
        match self.pane {
            Pane::Tunnels => Some(key),
            Pane::Requests => self.model.shown_requests().get(&key.parse().ok()?)?.tunnel.clone(),
            Pane::Log => None,
        }
    }

    fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Some(Wish::Quit),
                KeyCode::Char('z') => Some(Wish::Suspend),
                _ => None,
            };
        }
        match &mut self.mode {
            Mode::Filter(text) => {
                match key.code {
                    KeyCode::Char(each) => text.push(each),
                    KeyCode::Backspace => drop(text.pop()),
                    KeyCode::Enter => {
                        self.views[self.pane as usize].filter = std::mem::take(text);
                        self.mode = Mode::Table;
                        return None;
                    }
                    KeyCode::Esc => {
                        self.views[self.pane as usize].filter.clear();
                        self.mode = Mode::Table;
                        return None;
                    }
                    _ => {}
                }
                // The filter applies while the user types.
                self.views[self.pane as usize].filter.clone_from(text);
                None
            }
            Mode::Ask(_, path) => {
                let path = std::mem::take(path);
                self.mode = Mode::Table;
                matches!(key.code, KeyCode::Char('y' | 'Y')).then_some(Wish::Post(path))
            }
            Mode::Detail(_, _, scroll) => {
                // The screen limits it, because it knows how many rows the text has.
                match key.code {
                    KeyCode::Char('j') | KeyCode::Down => *scroll = scroll.saturating_add(1),
                    KeyCode::Char('k') | KeyCode::Up => *scroll = scroll.saturating_sub(1),
                    KeyCode::PageDown => *scroll = scroll.saturating_add(10),
                    KeyCode::PageUp => *scroll = scroll.saturating_sub(10),
                    KeyCode::Char('q' | 'Q') | KeyCode::Esc | KeyCode::Enter => self.mode = Mode::Table,
                    _ => {}
                }
                None
            }
            Mode::Help => {
                self.mode = Mode::Table;
                None
            }
            Mode::Table => self.table_key(key.code),
        }
    }

    fn table_key(&mut self, code: KeyCode) -> Option<Wish> {
        let page = isize::try_from(self.height.max(2) - 1).unwrap_or(1);
        let view = &mut self.views[self.pane as usize];
        match code {
            KeyCode::Char('q') => return Some(Wish::Quit),
            KeyCode::Tab => self.pane = self.pane.next(),
            KeyCode::BackTab => self.pane = self.pane.next().next(),
            KeyCode::Char('j') | KeyCode::Down => self.move_by(1),
            KeyCode::Char('k') | KeyCode::Up => self.move_by(-1),
            KeyCode::Char('g') | KeyCode::Home => self.move_by(isize::MIN),
            KeyCode::Char('G') | KeyCode::End => self.move_by(isize::MAX),
            KeyCode::PageDown => self.move_by(page),
            KeyCode::PageUp => self.move_by(-page),
            KeyCode::Char('/') => self.mode = Mode::Filter(view.filter.clone()),
            KeyCode::Esc => view.filter.clear(),
            KeyCode::Char('e') => view.only_errors = !view.only_errors,
            KeyCode::Char('w') => self.is_wide = !self.is_wide,
            KeyCode::Char('p') => self.model.pause(),
            KeyCode::Char('?') => self.mode = Mode::Help,
            KeyCode::Char(way @ ('<' | '>')) => {
                let last = self.pane.columns().len() - 1;
                view.sort = match (view.sort, way) {
                    (None, '>') => Some((0, false)),
                    (None, _) => Some((last, false)),
                    (Some((at, is_down)), '>') if at == last => Some((at, !is_down)),
                    (Some((0, false)), '<') => None,
                    (Some((0, true)), '<') => Some((0, false)),
                    (Some((at, is_down)), '>') => Some((at + 1, is_down)),
                    (Some((at, is_down)), _) => Some((at - 1, is_down)),
                };
            }
            KeyCode::Enter => {
                let key = self.current()?;
                return match self.pane {
                    Pane::Tunnels => Some(Wish::Tunnel(key)),
                    Pane::Requests => Some(Wish::Request(key)),
                    Pane::Log => {
                        let line = self.model.log.iter().find(|line| line.id.to_string() == key)?;
                        let title = format!("{} {}", panes::clock(&line.time), line.level);
                        self.mode = Mode::Detail(title, vec![line.text.clone()], 0);
                        None
                    }
                };
            }
            KeyCode::Char('s') => {
                let id = self.tunnel()?;
                self.mode = Mode::Ask(format!("stop {id}?"), format!("tunnels/{}/stop", socket::escape(&id)));
            }
            KeyCode::Char('r') => match self.pane {
                Pane::Requests => {
                    let id = self.current()?;
                    self.mode = Mode::Ask(format!("send request {id} again?"), format!("requests/{id}/replay"));
                }
                _ => return Some(Wish::Post(format!("tunnels/{}/reconnect", socket::escape(&self.tunnel()?)))),
            },
            KeyCode::Char('c') => {
                return match self.pane {
                    Pane::Tunnels | Pane::Requests => Some(Wish::CopyUrl(self.current()?)),
                    Pane::Log => {
                        let key = self.current()?;
                        let line = self.model.log.iter().find(|line| line.id.to_string() == key)?;
                        Some(Wish::Copy(line.text.clone(), "the line"))
                    }
                };
            }
            KeyCode::Char('y') if self.pane != Pane::Log => return Some(Wish::CopyCommand(self.current()?)),
            KeyCode::Char('o') if self.pane != Pane::Log => return Some(Wish::Open(self.current()?)),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> App {
        let mut app = App::new(Look { has_colours: false, has_unicode: false });
        for id in 1..=5 {
            let line = serde_json::json!({"id": id, "time": "2026-01-01T00:00:00Z", "level": "info", "text": format!("line {id}")});
            app.model.log(vec![serde_json::from_value(line).unwrap()]);
        }
        app.pane = Pane::Log;
        app
    }

    fn press(app: &mut App, keys: &str) -> Option<Wish> {
        keys.chars().fold(None, |_, each| {
            let code = match each {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                '\t' => KeyCode::Tab,
                each => KeyCode::Char(each),
            };
            app.key(KeyEvent::new(code, KeyModifiers::NONE))
        })
    }

    #[test]
    fn the_selected_line_keeps_its_place_when_others_come() {
        let mut app = app();
        press(&mut app, "jj");
        assert_eq!(app.current().as_deref(), Some("3"));
        let line = serde_json::json!({"id": 6, "time": "", "level": "info", "text": "new"});
        app.model.log(vec![serde_json::from_value(line).unwrap()]);
        assert_eq!(app.current().as_deref(), Some("3"));
        press(&mut app, "g");
        assert_eq!(app.current().as_deref(), Some("6"));
        press(&mut app, "G");
        assert_eq!(app.current().as_deref(), Some("1"));
    }

    #[test]
    fn a_filter_is_typed_kept_and_ended() {
        let mut app = app();
        press(&mut app, "/q2");
        assert_eq!((app.lines().len(), &app.views[2].filter), (0, &"q2".to_owned()), "q is a letter here");
        press(&mut app, "\x1b/2\n");
        assert_eq!(app.lines().len(), 1);
        press(&mut app, "\x1b");
        assert_eq!(app.lines().len(), 5);
    }

    #[test]
    fn stopping_asks_first() {
        let mut app = App::new(Look { has_colours: false, has_unicode: false });
        assert_eq!(press(&mut app, "s"), None);
        assert_eq!(app.mode, Mode::Table, "there is nothing to stop");
        let tunnel = serde_json::json!({
            "id": "a/b/c:80", "target": "", "state": "running", "pods": [], "pod": null, "protocol": null, "connections": 0,
            "streams": 0, "streams_total": 0, "leases": 0, "requests": 0, "errors": 0, "recent_requests": 0, "recent_errors": 0,
            "context": null, "bytes_up": 0, "bytes_down": 0,
            "first_byte_ms": {"count": 0, "p50": null, "p95": null, "p99": null}, "idle_seconds": null,
            "closes_in_seconds": null, "last_error": null
        });
        app.model.tunnels.insert("a/b/c:80".into(), serde_json::from_value(tunnel).unwrap());
        assert_eq!(press(&mut app, "sn"), None);
        assert_eq!(press(&mut app, "sy"), Some(Wish::Post("tunnels/a%2Fb%2Fc%3A80/stop".into())));
        assert_eq!(press(&mut app, "r"), Some(Wish::Post("tunnels/a%2Fb%2Fc%3A80/reconnect".into())));
        assert_eq!(press(&mut app, "q"), Some(Wish::Quit));
    }
}
