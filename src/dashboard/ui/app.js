'use strict';
// The dashboard's views. Whatever comes from clusters, paths and headers is written as text, never as markup.
(() => {
const MODE = document.documentElement.dataset.mode;
const main = document.getElementById('main');
const $ = (selector, at = document) => at.querySelector(selector);
const API = '/api/v1/';
const MOST_ROWS = 1000, SECONDS = 300;
// An event has so many rows at most. adit says something every 5 s: one that is silent for longer than SILENCE hangs.
const AT_ONCE = 250, SILENCE = 10000, READ_EVERY = 2000, PATIENCE = 10000, LONG_PATIENCE = 40000;
// Up to ALL rows a table is written whole; of a longer one, the rows that are seen and AHEAD more on each side.
const ALL = 100, AHEAD = 15;

// ---- elements

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return element;
}
const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const s = (name, attributes, ...children) => fill(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
const put = (element, ...children) => element.replaceChildren(...children.flat().filter(child => child));
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const button = (label, onclick, more) => h('button', {type: 'button', onclick, ...more}, label);

// ---- words

const count = new Intl.NumberFormat('en');
const sleep = time => new Promise(done => setTimeout(done, time));
const plural = (number, word) => `${count.format(number)} ${word}${number === 1 ? '' : 's'}`;
function bytes(number) {
  let unit = 0;
  while (number >= 1024 && unit < 4) { number /= 1024; unit++; }
  return `${unit ? number.toFixed(1) : number} ${['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit]}`;
}
function ms(number) {
  if (number === null || number === undefined) return '';
  if (number < 10) return number.toFixed(1);
  return count.format(Math.round(number));
}
function seconds(number) {
  if (number === null || number === undefined) return '';
  if (number < 60) return `${number} s`;
  return number < 3600 ? `${Math.floor(number / 60)} min` : `${Math.floor(number / 3600)} h ${Math.floor(number % 3600 / 60)} min`;
}
const clock = time => new Date(time).toLocaleTimeString('en-GB');
const SHAPES = {running: '● ', starting: '◐ ', stopping: '◌ ', failed: '▲ ', open: '● ', waiting: '▲ '};
const COLOURS = {running: 'ok', starting: 'warn', stopping: 'dim', failed: 'bad', open: 'ok', waiting: 'bad'};
const stateCell = state => state ? {t: (SHAPES[state] || '○ ') + state, c: COLOURS[state] || 'dim'} : {t: '○ none', c: 'dim'};
const statusClass = status => !status ? '' : status >= 500 ? 'bad' : status >= 400 ? 'warn' : '';
const isError = row => row.status ? row.status >= 500 || (row.error && row.status < 400) : Boolean(row.error);

// ---- what is known

const state = {
  status: null, attention: [], tunnels: new Map(), requests: new Map(), seconds: new Map(), log: new Map(),
  services: [], problems: [], firstByte: null, epoch: null, at: null,
};
let view = null, isDirty = false, notified = '';

function changed() {
  if (isDirty) return;
  isDirty = true;
  requestAnimationFrame(() => { isDirty = false; place(); if (view && view.update) view.update(); });
}
function place() {
  const status = state.status;
  if (!status) return;
  const context = (status.contexts || []).find(context => context.is_default);
  const isProduction = Boolean(context && context.production);
  document.body.classList.toggle('production', isProduction);
  setText($('#place'), (isProduction ? 'production: ' : '') + (status.context || 'no context'));
}
function keep(map, rows, most) {
  for (const row of rows) map.set(row.id, row);
  if (map.size > most) {
    // As in adit itself: one that goes on is kept for longer than those that have ended.
    const goesOn = id => map.get(id).took_ms === null;
    const ids = [...map.keys()].sort((a, b) => goesOn(a) - goesOn(b) || a - b);
    for (const id of ids.slice(0, map.size - most)) map.delete(id);
  }
}
const keepTunnels = tunnels => { for (const tunnel of tunnels) state.tunnels.set(tunnel.id, {...tunnel, at: Date.now()}); };
// No event says that time passes.
const passed = tunnel => Math.floor((Date.now() - (tunnel.at || Date.now())) / 1000);
const idle = tunnel => tunnel.idle_seconds === null ? null : tunnel.idle_seconds + passed(tunnel);
function addSeconds(list) {
  for (const second of list) state.seconds.set(Math.floor(Date.parse(second.time) / 1000), second);
  const oldest = Math.floor(Date.now() / 1000) - SECONDS - 5;
  for (const at of state.seconds.keys()) if (at < oldest) state.seconds.delete(at);
}
const paused = {is: false};
function snapshot(data) {
  Object.assign(state, {status: data.status, attention: data.attention, firstByte: data.first_byte_ms});
  state.tunnels.clear();
  keepTunnels(data.tunnels);
  takeRows(data.requests);
  // It has the newest requests only, and no line of the log.
  readAll();
  state.seconds.clear();
  addSeconds(data.seconds.slice(0, -1));
}
function change(data) {
  if (data.status) state.status = data.status;
  if (data.attention) state.attention = data.attention;
  if (data.first_byte_ms) state.firstByte = data.first_byte_ms;
  keepTunnels(data.tunnels || []);
  for (const id of data.closed || []) state.tunnels.delete(id);
  takeRows(data.requests || []);
  keep(state.log, data.log || [], MOST_ROWS);
  if (data.skipped || (data.log || []).length >= AT_ONCE) readAll();
  addSeconds(data.seconds || []);
}
/** Rows of events that came while the whole list was read: they are newer. Null: it is not being read. */
let newer = null;
function takeRows(rows) {
  if (!paused.is) keep(state.requests, rows, MOST_ROWS);
  if (newer) newer.push(...rows);
}
async function readRequests() {
  newer = [];
  try {
    const rows = (await get('requests')).requests;
    if (paused.is) return;
    state.requests.clear();
    keep(state.requests, [...rows, ...newer], MOST_ROWS);
  } finally { newer = null; }
}
const readLog = async () => keep(state.log, (await get('log')).log, MOST_ROWS);
let isReading = false, isShort = false, readAt = 0;
/** Reads what events leave out, where a view shows it: at once, and then every READ_EVERY at most. */
async function readAll() {
  isShort = true;
  if (isReading) return;
  isReading = true;
  while (isShort && view && view.read) {
    await sleep(Math.max(0, readAt + READ_EVERY - Date.now()));
    isShort = false;
    readAt = Date.now();
    try { if (view.read) await view.read(); } catch (error) { say(error.message); }
    changed();
  }
  isReading = false;
}

// ---- the stream of events, while the page is seen

let events = null, heardAt = Date.now(), lookedAt = heardAt;
const since = () => state.at ? ` What you see is of ${clock(state.at)}.` : '';
function connect() {
  if (events || document.hidden) return;
  heardAt = Date.now();
  events = new EventSource(API + 'events');
  const take = apply => event => {
    const epoch = event.lastEventId.split('-')[0];
    if (state.epoch && epoch !== state.epoch) { state.requests.clear(); state.log.clear(); if (view.restarted) view.restarted(); }
    state.epoch = epoch;
    heardAt = Date.now();
    state.at = new Date();
    apply(JSON.parse(event.data));
    notice('');
    changed();
  };
  events.addEventListener('snapshot', take(snapshot));
  events.addEventListener('change', take(change));
  events.onerror = async () => {
    const isOver = events && events.readyState === EventSource.CLOSED;
    notice(`No connection to adit.${since()}`);
    if (!isOver) return;
    disconnect();
    const answer = await fetch(API + 'status', {signal: AbortSignal.timeout(PATIENCE)}).catch(() => null);
    if (answer && answer.status === 403) notice(`Signed out: run 'adit ui'.${since()}`);
    else setTimeout(connect, 2000);
  };
}
/** Says that adit hangs: its connection stays open then, and nothing comes. */
function listen() {
  const now = Date.now();
  // This computer, or the tab, may have slept.
  if (!events || now - lookedAt > 3000) heardAt = now;
  lookedAt = now;
  // While there is no connection, its own events say so.
  if (!events || events.readyState !== EventSource.OPEN || now - heardAt < SILENCE) return;
  notice(`adit does not answer.${since()}`);
  disconnect();
  connect();
}
function disconnect() { if (events) events.close(); events = null; }
function notice(text) {
  if (text === notified) return;
  notified = text;
  const bar = $('#notice');
  bar.hidden = !text;
  bar.textContent = text;
  document.body.classList.toggle('stale', Boolean(text));
}
let saidTimer;
function say(text, stays) {
  $('#state').textContent = text;
  clearTimeout(saidTimer);
  if (!stays) saidTimer = setTimeout(() => { $('#state').textContent = ''; }, 4000);
}

// ---- requests to the API

async function call(path, options, within, over = new AbortController()) {
  const timer = setTimeout(() => over.abort(), within);
  let answer, text;
  try {
    answer = await fetch(API + path, {...options, signal: over.signal});
    text = await answer.text();
  } catch { throw new Error(over.signal.aborted ? `adit has not answered in ${within / 1000} s` : 'no connection to adit'); } finally { clearTimeout(timer); }
  let found = {};
  try { found = text ? JSON.parse(text) : {}; } catch { /* it is said by its status */ }
  if (!answer.ok) {
    const error = found.error || {};
    throw new Error([error.message || `adit answered ${answer.status}`, error.hint].filter(Boolean).join(' — '));
  }
  return found;
}
const get = (path, within = PATIENCE, over) => call(path, {}, within, over);
const post = (path, body) => call(path, {method: 'POST', headers: {'content-type': 'application/json', 'x-adit': '1'}, body: JSON.stringify(body || {})}, LONG_PATIENCE);
async function act(what, path, body) {
  try {
    const found = await post(path, body);
    say(what);
    return found;
  } catch (error) { say(`Failed: ${error.message}`); return null; }
}
async function copy(text, what) {
  try { await navigator.clipboard.writeText(text); say(`Copied ${what}`); } catch { ask(`Copy ${what}`, text, null); }
}
/** Asks before something ends, or shows a text to copy. */
function ask(title, text, go, label) {
  const box = h('dialog', {'aria-label': title}, h('h2', {}, title), h('pre', {tabindex: 0}, text));
  const close = () => { box.close(); box.remove(); };
  const buttons = [button(go ? 'Cancel' : 'Close', close)];
  if (go) buttons.unshift(button(label || title, () => { close(); go(); }));
  else buttons.unshift(button('Copy', () => { navigator.clipboard.writeText(text).catch(() => {}); close(); }));
  box.append(h('div', {class: 'tools'}, buttons));
  box.addEventListener('close', () => box.remove());
  document.body.append(box);
  box.showModal();
}
const stop = id => ask('Stop', `${id}\n\nThe tunnel closes, and its open streams end. The next connection opens it again.`,
  () => act('Stopped', `tunnels/${encodeURIComponent(id)}/stop`), 'Stop the tunnel');
const reconnect = id => act('Another session opens', `tunnels/${encodeURIComponent(id)}/reconnect`);

// ---- a table whose rows are changed in place; a long one has elements only for what is near the rows that are seen

class Grid {
  /** columns: {name, cell(row), sort(row), num, c}; key(row); open(row): Enter or a click; fixed: cells depend on their row alone. */
  constructor({caption, columns, key, open, empty, sort, c, fixed}) {
    Object.assign(this, {columns, key, open, empty, fixed, rows: [], byKey: new Map(), order: sort || null, current: null, span: [0, 0], height: 30, measured: 0});
    this.body = h('tbody');
    this.body.grid = this;
    // They stand for the rows before, between and behind those that are written.
    this.pads = [0, 1, 2].map(() => h('tr', {class: 'pad', 'aria-hidden': 'true'}, h('td', {colspan: columns.length})));
    this.heads = columns.map((column, at) => h('th', {scope: 'col', class: [column.num && 'num', column.c].filter(Boolean).join(' ') || null},
      column.sort ? button(column.name, () => this.sortBy(at)) : column.name || h('span', {class: 'sr'}, 'Actions')));
    this.table = h('table', {class: c}, h('caption', {class: 'sr'}, caption), h('thead', {}, h('tr', {}, this.heads)), this.body);
    this.none = h('p', {class: 'dim'});
    this.element = h('div', {}, h('div', {class: 'scroll', role: 'region', 'aria-label': caption, tabindex: 0}, this.table), this.none);
    this.body.addEventListener('click', event => {
      const row = event.target.closest('tr');
      if (row && row.row && !event.target.closest('a,button')) { this.select(row.rowKey); if (this.open) this.open(row.row); }
    });
    this.body.addEventListener('focusin', event => { if (event.target.matches('tr')) this.mark(event.target.rowKey); });
    this.showOrder();
  }
  sortBy(at) {
    const isSame = this.order && this.order.at === at;
    this.order = {at, down: isSame ? !this.order.down : Boolean(this.columns[at].num)};
    this.showOrder();
    this.seen = [];
    this.set(this.all);
    this.seen = null;
  }
  /** Changes the table, and leaves the rows that are looked at where they are on the screen. */
  still(change) {
    if (this.seen) return change();
    this.seen = this.onScreen();
    change();
    const index = new Map(this.seen.length ? this.rows.map((row, at) => [this.key(row), at]) : []);
    const [key, top] = this.seen.find(([key]) => index.has(key)) || [];
    if (top !== undefined) {
      // It may be so far away by now that it has no element.
      if (!this.byKey.has(key)) { scrollBy(0, this.body.getBoundingClientRect().top + index.get(key) * this.height - top); this.render(); }
      const by = this.byKey.get(key).getBoundingClientRect().top - top;
      if (Math.abs(by) >= 1) scrollBy(0, by);
    }
    this.seen = null;
  }
  /** The rows on the screen, with where they are: the one with the focus, the one under the pointer, the others. At its top a table shows what is new. */
  onScreen() {
    const active = document.activeElement, focused = active && active.closest('tr');
    const hasFocus = focused && focused.parentElement === this.body;
    if (this.body.getBoundingClientRect().top >= 0 && !hasFocus) return [];
    const rank = element => element === focused ? 0 : element.matches(':hover') ? 1 : 2;
    const found = [...this.byKey].map(([key, element]) => ({key, element, box: element.getBoundingClientRect()}));
    return found.filter(({box}) => box.bottom > 0 && box.top < innerHeight).sort((a, b) => rank(a.element) - rank(b.element) || a.box.top - b.box.top).map(({key, box}) => [key, box.top]);
  }
  showOrder() {
    this.heads.forEach((head, at) => {
      if (!this.columns[at].sort) return;
      head.setAttribute('aria-sort', this.order && this.order.at === at ? (this.order.down ? 'descending' : 'ascending') : 'none');
    });
  }
  set(rows) {
    this.all = rows;
    let sorted = rows;
    if (this.order) {
      const sort = this.columns[this.order.at].sort, way = this.order.down ? -1 : 1;
      sorted = [...rows].sort((a, b) => {
        const [x, y] = [sort(a), sort(b)];
        return x === y ? 0 : (x < y ? -way : way);
      });
    }
    this.rows = sorted;
    this.none.hidden = this.rows.length > 0;
    this.table.parentElement.hidden = this.rows.length === 0;
    setText(this.none, this.empty || '');
    if (this.rows.length > ALL) this.table.setAttribute('aria-rowcount', this.rows.length + 1); else this.table.removeAttribute('aria-rowcount');
    this.render();
  }
  render() { this.still(() => this.write()); }
  /** The rows that are seen, and `ahead` more on each side: the first, and the one behind the last. */
  near(ahead) {
    const many = this.rows.length;
    if (many <= ALL) return [0, many];
    const top = Math.floor(-this.body.getBoundingClientRect().top / this.height);
    const first = Math.max(0, Math.min(many - 1, top) - ahead);
    return [first, Math.min(many, Math.max(top, 0) + Math.ceil(innerHeight / this.height) + ahead)];
  }
  scrolled() {
    const [first, end] = this.near(AHEAD / 3);
    if (first < this.span[0] || end > this.span[1]) this.render();
  }
  write() {
    this.span = this.near(AHEAD);
    const [first, end] = this.span, keys = new Map(), isLong = this.rows.length > ALL;
    for (let at = first; at < end; at++) keys.set(this.key(this.rows[at]), at);
    // The row with the focus keeps it, however far away it is.
    const active = document.activeElement && document.activeElement.closest ? document.activeElement.closest('tr') : null;
    const focused = active && active.parentElement === this.body ? active : null;
    if (focused && !keys.has(focused.rowKey)) {
      const at = this.rows.findIndex(row => this.key(row) === focused.rowKey);
      if (at >= 0) keys.set(focused.rowKey, at);
    }
    for (const [key, element] of this.byKey) if (!keys.has(key)) { element.remove(); this.byKey.delete(key); }
    let cursor = this.body.firstChild, next = 0, pad = 0;
    const place = element => {
      if (element === cursor) { cursor = cursor.nextSibling; return; }
      this.body.insertBefore(element, cursor);
      if (element === focused) element.focus({preventScroll: true});
    };
    const gap = to => {
      if (to <= next) return;
      const element = this.pads[pad++];
      element.firstChild.style.height = `${(to - next) * this.height}px`;
      place(element);
    };
    for (const [key, at] of [...keys].sort((a, b) => a[1] - b[1])) {
      gap(at);
      next = at + 1;
      place(this.fill(key, this.rows[at], isLong ? at : null));
    }
    gap(this.rows.length);
    while (cursor) { const stale = cursor; cursor = cursor.nextSibling; stale.remove(); }
    if (!this.body.querySelector('tr[tabindex="0"]')) { const row = this.body.querySelector('tr[tabindex]'); if (row) row.tabIndex = 0; }
    if (isLong && this.measured !== this.element.clientWidth) this.measure(first, end);
  }
  /** Takes the height of a row from those that are written: once for each width, so that the rest keeps its place. */
  measure(first, end) {
    const [top, last] = [first, end - 1].map(at => this.byKey.get(this.key(this.rows[at])).getBoundingClientRect());
    const height = (last.bottom - top.top) / (end - first);
    if (!(height > 0)) return;
    this.measured = this.element.clientWidth;
    if (Math.abs(height - this.height) > 1) { this.height = height; this.write(); }
  }
  /** Returns the element of a row, as the row is now. `at`: where it is in a long table. */
  fill(key, row, at) {
    let element = this.byKey.get(key);
    if (!element) {
      const isCurrent = key === this.current;
      element = h('tr', {tabindex: isCurrent ? 0 : -1, 'aria-current': isCurrent ? 'true' : null}, this.columns.map((column, at) =>
        h(at === 0 ? 'th' : 'td', {scope: at === 0 ? 'row' : null, class: [column.num && 'num', column.c].filter(Boolean).join(' ') || null})));
      element.rowKey = key;
      this.byKey.set(key, element);
    }
    const isSame = this.fixed && element.row === row;
    element.row = row;
    if (!isSame) this.columns.forEach((column, at) => this.writeCell(element.children[at], column.cell(row), column));
    if (at === null) element.removeAttribute('aria-rowindex'); else element.setAttribute('aria-rowindex', at + 2);
    return element;
  }
  writeCell(cell, found, column) {
    const value = found === null || found === undefined ? {t: ''} : typeof found === 'object' ? found : {t: String(found)};
    const sign = `${value.t}\n${value.a}\n${value.c}\n${value.tip}\n${value.prod}\n${value.b ? value.b.map(each => each[0]) : ''}`;
    if (cell.sign === sign) { cell.acts = value.b; return; }
    cell.sign = sign;
    cell.acts = value.b;
    cell.className = [column.num && 'num', column.c, value.c].filter(Boolean).join(' ');
    if (value.tip) cell.title = value.tip;
    if (value.b) return put(cell, value.b.map((each, at) => button(each[0], () => cell.acts[at][1](), {class: 'act', title: each[2]})));
    const text = value.a ? h('a', {href: value.a, target: value.out ? '_blank' : null, rel: value.out ? 'noopener' : null}, value.t) : String(value.t);
    put(cell, value.prod ? h('span', {class: 'prod'}, 'prod') : null, value.prod ? ' ' : null, text);
  }
  mark(key) {
    this.current = key;
    for (const [other, element] of this.byKey) {
      const is = other === key;
      element.tabIndex = is ? 0 : -1;
      if (is) element.setAttribute('aria-current', 'true'); else element.removeAttribute('aria-current');
    }
  }
  select(key) {
    if (!this.byKey.has(key)) {
      const at = this.rows.findIndex(row => this.key(row) === key);
      if (at >= 0) { scrollBy(0, this.body.getBoundingClientRect().top + at * this.height - innerHeight / 2); this.render(); }
    }
    this.mark(key);
    const element = this.byKey.get(key);
    if (element) { element.focus({preventScroll: true}); element.scrollIntoView({block: 'nearest'}); }
  }
  move(by) {
    if (!this.rows.length) return;
    const at = this.rows.findIndex(row => this.key(row) === this.current);
    const next = at < 0 ? 0 : Math.max(0, Math.min(this.rows.length - 1, at + by));
    this.select(this.key(this.rows[next]));
  }
  get selected() { return this.rows.find(row => this.key(row) === this.current) || null; }
}
let isScrolled = false;
function scrolled() {
  if (isScrolled) return;
  isScrolled = true;
  requestAnimationFrame(() => { isScrolled = false; for (const body of document.querySelectorAll('tbody')) if (body.grid) body.grid.scrolled(); });
}
addEventListener('scroll', scrolled, {passive: true});
addEventListener('resize', scrolled);
const isProduction = context => {
  const found = state.status && (state.status.contexts || []).find(each => each.name === context);
  return Boolean(found && found.production);
};

// ---- charts: each with a table for those who do not see it

function hiddenTable(caption, heads, rows) {
  return h('div', {class: 'sr'}, h('table', {}, h('caption', {}, caption), h('thead', {}, h('tr', {}, heads.map(head => h('th', {scope: 'col'}, head)))),
    h('tbody', {}, rows.map(row => h('tr', {}, row.map((cell, at) => h(at ? 'td' : 'th', {scope: at ? null : 'row'}, String(cell))))))));
}
/** Five minutes, a value for each second; `two` is a second line. */
class Spark {
  constructor(name, shown, two) {
    this.shown = shown; this.name = name; this.drawn = 0;
    this.area = s('path', {class: 'fill'});
    this.one = s('path', {class: 'line'});
    this.two = two ? s('path', {class: 'line two'}) : null;
    this.svg = s('svg', {class: 'spark', viewBox: `0 0 ${SECONDS} 36`, preserveAspectRatio: 'none', role: 'img', 'aria-label': name},
      s('path', {class: 'axis', d: `M0 35.5H${SECONDS}`}), this.area, this.one, this.two || '');
    this.table = h('div');
    this.element = h('div', {}, this.svg, this.table);
  }
  draw(values, others) {
    const most = Math.max(1e-9, ...values, ...(others || []));
    const path = list => list.map((value, at) => `${at ? 'L' : 'M'}${at} ${(35 - 33 * value / most).toFixed(1)}`).join('');
    this.one.setAttribute('d', path(values));
    this.area.setAttribute('d', `${path(values)}L${values.length - 1} 35L0 35Z`);
    if (this.two && others) this.two.setAttribute('d', path(others));
    const now = Date.now();
    if (now - this.drawn < 5000) return;
    this.drawn = now;
    const rows = [];
    for (let from = 0; from < values.length; from += 30) {
      const part = list => list.slice(from, from + 30).reduce((sum, value) => sum + value, 0) / 30;
      rows.push([`${SECONDS - from} s ago`, this.shown(part(values)), ...(others ? [this.shown(part(others))] : [])]);
    }
    put(this.table, hiddenTable(`${this.name}, averages of 30 s`, ['From', 'Average', ...(others ? ['Second'] : [])], rows));
  }
}
function lastSeconds(read) {
  const now = Math.floor(Date.now() / 1000) - 1, values = [];
  let connections = 0;
  for (let at = now - SECONDS + 1; at <= now; at++) {
    const second = state.seconds.get(at);
    if (second) connections = second.connections;
    values.push(read(second || {requests: 0, errors: 0, bytes_up: 0, bytes_down: 0, connections}));
  }
  return values;
}
function histogram(buckets, title) {
  if (!buckets.length) return h('p', {class: 'dim'}, 'No request has been answered yet.');
  const W = 480, H = 120, most = Math.max(...buckets.map(bucket => bucket.count));
  const low = Math.log(buckets[0].upto_ms * 0.8), high = Math.log(buckets[buckets.length - 1].upto_ms);
  const x = value => 10 + (W - 20) * (Math.log(value) - low) / Math.max(high - low, 0.01);
  const bars = buckets.map(bucket => {
    const left = x(bucket.upto_ms * 0.8), height = Math.max(1.5, (H - 30) * bucket.count / most);
    return s('rect', {x: left.toFixed(1), y: (H - 18 - height).toFixed(1), width: Math.max(2, x(bucket.upto_ms) - left - 1).toFixed(1), height: height.toFixed(1)},
      s('title', {}, `up to ${ms(bucket.upto_ms)} ms: ${bucket.count}`));
  });
  const ticks = [0.1, 1, 10, 100, 1000, 10000].filter(value => Math.log(value) >= low && Math.log(value) <= high);
  const labels = (ticks.length ? ticks : [buckets[0].upto_ms]).map(value =>
    s('text', {x: x(value).toFixed(1), y: H - 4, 'text-anchor': 'middle'}, value < 1000 ? `${value} ms` : `${value / 1000} s`));
  return h('div', {}, s('svg', {class: 'bars', viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': title}, s('path', {class: 'axis', d: `M0 ${H - 18}H${W}`}), bars, labels,
    s('text', {x: W - 2, y: 10, 'text-anchor': 'end'}, `most: ${count.format(most)}`)),
    hiddenTable(title, ['Up to', 'Requests'], buckets.map(bucket => [`${ms(bucket.upto_ms)} ms`, bucket.count])));
}
function waterfall(row) {
  const total = row.took_ms ?? row.first_byte_ms ?? row.tunnel_ms ?? 0;
  const tunnel = Math.min(row.tunnel_ms ?? 0, total), connected = Math.max(tunnel, Math.min(row.connected_ms ?? tunnel, total));
  const first = Math.max(connected, Math.min(row.first_byte_ms ?? total, total));
  const parts = [['Name and tunnel', 0, tunnel, ''], ['Connection to the pod', tunnel, connected, 'connect'], ['Waiting for the pod', connected, first, 'wait'], ['Body', first, total, 'body']];
  const W = 480, x = value => total ? 150 + 250 * value / total : 150;
  const lines = parts.map(([name, from, to, c], at) => [
    s('text', {x: 0, y: 14 + at * 20}, name),
    s('rect', {class: c, x: x(from).toFixed(1), y: 4 + at * 20, width: Math.max(1, x(to) - x(from)).toFixed(1), height: 12}),
    s('text', {x: 410, y: 14 + at * 20}, `${ms(to - from)} ms`)]).flat();
  return h('div', {}, s('svg', {class: 'fall', viewBox: `0 0 ${W} 84`, role: 'img', 'aria-label': 'Timing'}, lines),
    hiddenTable('Timing', ['Part', 'From', 'To'], parts.map(([name, from, to]) => [name, `${ms(from)} ms`, `${ms(to)} ms`])));
}

// ---- tunnels

function tunnelId() {
  const id = location.pathname.slice('/tunnel/'.length);
  try { return decodeURIComponent(id); } catch { return id; }
}
const tunnelAddress = id => `/tunnel/${encodeURIComponent(id)}`;
const tunnelColumns = [
  {name: 'Tunnel', c: 'id', sort: row => row.id, cell: row => ({t: row.id, a: tunnelAddress(row.id), prod: isProduction(row.context)})},
  {name: 'State', c: 'nowrap', sort: row => row.state, cell: row => stateCell(row.state)},
  {name: 'Pods', c: 'wide', cell: row => row.pods.length > 2 ? {t: `${row.pods.length} pods`, tip: row.pods.join('\n')} : row.pods.join(', ')},
  {name: 'Streams', num: true, sort: row => row.streams, cell: row => row.streams},
  {name: 'Requests', num: true, sort: row => row.requests, cell: row => count.format(row.requests)},
  {name: 'Errors', num: true, sort: row => row.errors, cell: row => ({t: row.errors, c: row.errors ? 'bad' : 'dim'})},
  {name: 'p50 ms', num: true, c: 'wide', sort: row => row.first_byte_ms.p50 || 0, cell: row => ms(row.first_byte_ms.p50)},
  {name: 'Up', num: true, c: 'wide', sort: row => row.bytes_up, cell: row => bytes(row.bytes_up)},
  {name: 'Down', num: true, c: 'wide', sort: row => row.bytes_down, cell: row => bytes(row.bytes_down)},
  {name: 'Idle', num: true, c: 'wide', sort: row => idle(row) ?? -1, cell: row => row.idle_seconds === null ? 'in use' : seconds(idle(row))},
];

// ---- views

function now() {
  const facts = h('dl', {class: 'facts'}), needs = h('div');
  const tiles = [
    ['Requests per second', second => second.requests, value => value.toFixed(1)],
    ['Errors per second', second => second.errors, value => value.toFixed(1)],
    ['Bytes per second', second => second.bytes_down, bytes, second => second.bytes_up],
    ['Open connections', second => second.connections, value => String(Math.round(value))],
  ].map(([name, read, shown, two]) => {
    const big = h('div', {class: 'big'}), spark = new Spark(`${name}, five minutes`, value => shown(Math.round(value * 10) / 10), two);
    return {name, read, shown, two, big, spark, element: h('section', {class: 'tile', 'aria-label': name}, h('h3', {}, name), big, spark.element)};
  });
  const grid = new Grid({caption: 'Tunnels', columns: tunnelColumns, key: row => row.id, open: row => go(tunnelAddress(row.id)),
    empty: 'No tunnel: one opens with the first connection to a Service.'});
  const contexts = new Grid({caption: 'Contexts', key: row => row.name, columns: [
    {name: 'Context', c: 'id', cell: row => ({t: row.name, prod: row.production})},
    {name: 'Alias', cell: row => row.alias || ''},
    {name: 'State', c: 'nowrap', cell: row => row.state},
    {name: 'Sign-in', c: 'nowrap', cell: row => signInLeft(row.sign_in_ends)},
    {name: 'Writes', cell: row => row.methods ? {t: row.unlocked_minutes ? `unlocked for ${row.unlocked_minutes} min` : `only ${row.methods.join(', ')}`, c: row.unlocked_minutes ? 'warn' : ''} : ''},
    {name: 'Tunnels', num: true, cell: row => row.tunnels},
  ]});
  put(main, h('h1', {}, 'Now'), facts, h('h2', {}, 'Needs attention'), needs, h('h2', {}, 'Five minutes'), h('div', {class: 'tiles'}, tiles.map(tile => tile.element)),
    h('h2', {}, 'Tunnels in use'), grid.element, h('h2', {}, 'Contexts'), contexts.element);
  let told = '', factsTold = '';
  const rest = () => tiles.forEach(tile => {
    const values = lastSeconds(tile.read), others = tile.two ? lastSeconds(tile.two) : null;
    const recent = list => list.slice(-5).reduce((sum, value) => sum + value, 0) / 5;
    const isCount = tile.name.startsWith('Open');
    const value = isCount ? values[values.length - 1] : recent(values);
    setText(tile.big, tile.two ? `↓ ${bytes(Math.round(value))}  ↑ ${bytes(Math.round(recent(others)))}` : tile.shown(value));
    tile.spark.draw(values, others);
  });
  const ticking = setInterval(() => { if (!document.hidden) rest(); }, 1000);
  return {
    title: 'Now', grid,
    update() {
      const status = state.status;
      if (!status) return;
      const lines = [['Version', status.version], ['Context', status.context || 'none'], ['Listens on', [...status.http, ...status.tcp].join(', ')],
        ['Configuration', `${status.config || 'none'}, loaded at ${status.loaded_at}`], ['Running since', new Date(status.started).toLocaleString('en-GB')]];
      for (const local of status.local || []) lines.push([`Local port ${local.port}`, local.public ? `open at ${local.public}` : `${local.state}${local.reason ? `: ${local.reason}` : ''}`]);
      if (factsTold !== JSON.stringify(lines)) {
        factsTold = JSON.stringify(lines);
        put(facts, lines.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]).flat());
      }
      if (told !== JSON.stringify(state.attention)) {
        told = JSON.stringify(state.attention);
        put(needs, state.attention.length ? state.attention.map(need) : h('p', {class: 'dim'}, 'Nothing.'));
      }
      const inUse = [...state.tunnels.values()].sort((a, b) => (idle(a) ?? -1) - (idle(b) ?? -1));
      grid.set(inUse);
      contexts.set((status.contexts || []).map(context => {
        const of = inUse.filter(tunnel => tunnel.context === context.name);
        const has = word => of.some(tunnel => tunnel.state === word);
        const word = context.unreachable_since ? {t: `▲ unreachable since ${new Date(context.unreachable_since).toLocaleTimeString('en-GB')}`, c: 'bad'} : has('running') ? {t: '● ok', c: 'ok'} : has('failed') ? {t: '▲ failing', c: 'bad', tip: of.find(tunnel => tunnel.state === 'failed').last_error} : has('starting') ? {t: '◐ starting', c: 'warn'} : context.is_used ? {t: '● ok', c: 'ok'} : {t: '○ not used', c: 'dim'};
        return {...context, state: word, tunnels: of.length};
      }));
      rest();
    },
    end() { clearInterval(ticking); },
    item: () => grid.selected && {tunnel: grid.selected.id, find: () => ofTunnel(grid.selected.id)},
  };
}
// When a sign-in ends; the last quarter of an hour in minutes.
function signInLeft(ends) {
  if (!ends) return '';
  const minutes = Math.ceil((new Date(ends) - Date.now()) / 60000);
  return minutes <= 0 ? {t: 'has ended', c: 'warn'} : minutes <= 15 ? {t: `ends in ${minutes} min`, c: 'warn'} : `until ${new Date(ends).toLocaleTimeString('en-GB', {hour: '2-digit', minute: '2-digit'})}`;
}
function need(one) {
  return h('article', {class: 'need'}, h('h3', {}, one.tunnel ? h('a', {href: tunnelAddress(one.tunnel)}, one.title) : one.title),
    one.cause && h('p', {}, one.cause), one.hint && h('p', {}, one.hint),
    one.command && h('div', {class: 'row'}, h('pre', {}, one.command), button('Copy command', () => copy(one.command, 'the command'))));
}

const query = () => new URLSearchParams(location.search);
function setQuery(changes) {
  const params = query();
  for (const [name, value] of Object.entries(changes)) if (value) params.set(name, value); else params.delete(name);
  const text = params.toString();
  history.replaceState(null, '', location.pathname + (text ? `?${text}` : ''));
}

// The list costs the API server something: it is read again after twenty times as long as it took, and seldom where that fails.
const LISTED_AFTER = 10000, LISTED_AT_LAST = 600000;
let listing = null, listTimer = null, listPause = LISTED_AFTER;
async function loadServices() {
  const context = query().get('context') || '', began = Date.now(), mine = new AbortController();
  clearTimeout(listTimer);
  // The answer for a context that was chosen before is not waited for.
  if (listing) listing.abort();
  listing = mine;
  if (state.servicesOf !== context) Object.assign(state, {servicesOf: context, services: [], problems: [], servicesAt: null});
  changed();
  let found;
  try {
    found = await get(`services?pods=1${context ? `&context=${encodeURIComponent(context)}` : ''}`, LONG_PATIENCE, mine);
    if (listing === mine) state.servicesAt = new Date(began);
  } catch (error) { found = {services: state.services, problems: [{message: error.message}]}; }
  if (listing !== mine) return;
  listing = null;
  state.services = found.services;
  state.problems = found.problems || [];
  listPause = state.problems.length ? Math.min(2 * listPause, LISTED_AT_LAST) : Math.max(LISTED_AFTER, 20 * (Date.now() - began));
  listTimer = setTimeout(() => { listTimer = null; if (!document.hidden) loadServices(); }, listPause);
  changed();
}
function leaveServices() {
  clearTimeout(listTimer);
  if (listing) listing.abort();
  listTimer = listing = null;
}
function services() {
  const params = query();
  const search = h('input', {type: 'search', 'aria-label': 'Search the Services', placeholder: 'Search: name, namespace, port, URL', value: params.get('q') || '',
    oninput: () => { setQuery({q: search.value}); changed(); }});
  let tab = params.get('tab') || 'all';
  const tabs = [['all', 'All'], ['used', 'In use'], ['errors', 'Errors']].map(([id, name]) =>
    button(name, () => { tab = id; setQuery({tab: id === 'all' ? '' : id}); changed(); }, {'aria-pressed': String(tab === id), 'data-tab': id}));
  const context = h('select', {'aria-label': 'Context', onchange: () => { setQuery({context: context.value}); loadServices(); }});
  const total = h('span', {class: 'count', role: 'status'}), read = h('span', {class: 'count'}), problems = h('div');
  const tunnelOf = row => row.tunnel && state.tunnels.get(row.tunnel);
  const recent = row => { const tunnel = tunnelOf(row); return tunnel ? tunnel.recent_requests : 0; };
  const hasUrl = row => row.url && ['http', 'unknown'].includes(row.speaks) && !row.name.startsWith('*');
  const actions = row => {
    const list = [];
    if (hasUrl(row)) list.push(['Copy URL', () => copy(row.url, 'the URL')]);
    if (row.address && row.speaks !== 'http') list.push(['Copy address', () => copy(row.address, 'the address')]);
    if (row.command) list.push(['Copy command', () => copy(row.command, 'the command'), row.command]);
    if (row.missing_route) list.push([row.missing_route.startsWith('contexts:') ? 'Add a name' : 'Add a route', () => ask('Add these lines to the configuration', row.missing_route, null)]);
    if (tunnelOf(row)) list.push(['Stop', () => stop(row.tunnel)]);
    return list;
  };
  const grid = new Grid({caption: 'Services and routes', key: row => `${row.from} ${row.context} ${row.name} ${row.port}`,
    empty: 'No Service matches the search.',
    open: row => tunnelOf(row) ? go(tunnelAddress(row.tunnel)) : null,
    columns: [
      {name: 'Name', c: 'id', sort: row => row.name, cell: row => hasUrl(row) ? {t: row.name, a: row.url, out: true, prod: isProduction(row.context)} : {t: row.name, prod: isProduction(row.context)}},
      {name: 'Port', c: 'port', sort: row => row.port || '', cell: row => row.port || row.target},
      {name: 'Context', c: 'wide', sort: row => row.context || '', cell: row => row.context || ''},
      {name: 'Ready', c: 'nowrap', sort: row => row.ready ?? -1, cell: row => row.pods === null || row.pods === undefined ? '' : {t: `${row.ready}/${row.pods}`, c: row.ready ? '' : 'bad'}},
      {name: 'Tunnel', c: 'nowrap', sort: row => tunnelOf(row) ? tunnelOf(row).state : '', cell: row => tunnelOf(row) ? {...stateCell(tunnelOf(row).state), a: tunnelAddress(row.tunnel)} : {t: '○ none', c: 'dim'}},
      {name: 'Requests 5 min', num: true, sort: recent, cell: row => tunnelOf(row) ? count.format(recent(row)) : ''},
      {name: 'Errors', num: true, sort: row => tunnelOf(row) ? tunnelOf(row).recent_errors : 0, cell: row => { const tunnel = tunnelOf(row); return tunnel ? {t: tunnel.recent_errors, c: tunnel.recent_errors ? 'bad' : 'dim'} : ''; }},
      {name: 'Used', c: 'wide nowrap', sort: row => { const tunnel = tunnelOf(row); return tunnel ? idle(tunnel) ?? -1 : 1e9; }, cell: row => { const tunnel = tunnelOf(row); return tunnel ? tunnel.idle_seconds === null ? 'now' : `${seconds(idle(tunnel))} ago` : ''; }},
      {name: 'From', c: 'wide', sort: row => row.from, cell: row => row.from === 'service' ? 'Service' : `route (${row.from})`},
      {name: '', c: 'acts', cell: row => ({b: actions(row)})},
    ]});
  put(main, h('h1', {}, 'Services'), h('div', {class: 'tools'}, search, context, tabs, button('Reload', loadServices), total, read), problems, grid.element);
  loadServices();
  let told = '', contextsTold = '';
  return {
    title: 'Services', grid, search, end: leaveServices, restarted: loadServices, shown: () => { if (!listTimer && !listing) loadServices(); },
    update() {
      const names = ((state.status || {}).contexts || []).map(each => each.name);
      if (contextsTold !== names.join()) {
        contextsTold = names.join();
        const chosen = query().get('context') || '';
        put(context, h('option', {value: ''}, 'Default context'), names.map(name => h('option', {value: name, selected: name === chosen}, name)));
      }
      for (const each of tabs) each.setAttribute('aria-pressed', String(each.dataset.tab === tab));
      if (told !== JSON.stringify(state.problems)) {
        told = JSON.stringify(state.problems);
        put(problems, state.problems.map(problem => need({title: problem.message, cause: problem.cause, hint: problem.hint})));
      }
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = state.services.filter(row => {
        const tunnel = tunnelOf(row);
        if (tab === 'used' && !tunnel) return false;
        if (tab === 'errors' && !(tunnel && (tunnel.recent_errors || tunnel.state === 'failed')) && row.ready !== 0) return false;
        const text = `${row.name} ${row.port || ''} ${row.url} ${row.context || ''} ${row.target} ${row.speaks} ${row.from} ${tunnel ? tunnel.state : ''}`.toLowerCase();
        return words.every(word => text.includes(word));
      });
      setText(read, state.servicesAt ? `read at ${clock(state.servicesAt)}` : '');
      grid.empty = state.servicesAt || state.problems.length ? 'No Service matches the search.' : 'Loading Services.';
      setText(total, rows.length === state.services.length ? plural(rows.length, 'port') : `${count.format(rows.length)} of ${plural(state.services.length, 'port')}`);
      grid.set(rows);
    },
    item: () => grid.selected && {url: hasUrl(grid.selected) && grid.selected.url, command: grid.selected.command, tunnel: tunnelOf(grid.selected) ? grid.selected.tunnel : null},
    errors: () => { tab = tab === 'errors' ? 'all' : 'errors'; setQuery({tab: tab === 'all' ? '' : tab}); changed(); },
  };
}

function tunnel() {
  const id = tunnelId();
  const facts = h('dl', {class: 'facts'}), names = h('ul'), tools = h('div', {class: 'tools'}), trouble = h('div');
  const chart = h('div'), rate = new Spark('Requests per second, five minutes', value => value.toFixed(1)), command = h('div', {class: 'row'});
  const pods = new Grid({caption: 'Pods', key: row => row.pod, empty: 'Not connected to a pod.', columns: [
    {name: 'Pod', c: 'id', cell: row => row.pod}, {name: 'Open', num: true, cell: row => row.open}, {name: 'Requests kept', num: true, cell: row => row.requests},
    {name: 'Errors', num: true, cell: row => ({t: row.errors, c: row.errors ? 'bad' : 'dim'})}]});
  const log = new Grid({caption: 'Events', key: row => row.key, empty: 'No events.', columns: [
    {name: 'Time', c: 'nowrap', cell: row => clock(row.time)}, {name: 'Event', c: 'nowrap', cell: row => ({t: row.event, c: ['failed', 'lost'].includes(row.event) ? 'bad' : ''})}, {name: 'What', cell: row => row.text}]});
  put(main, h('h1', {}, id), trouble, facts, tools, h('div', {class: 'cards'},
    h('section', {}, h('h2', {}, 'Names of this target'), names, h('h2', {}, 'The same with kubectl'), command, h('h2', {}, 'Pods'), pods.element),
    h('section', {}, h('h2', {}, 'Time to the first byte'), chart, h('h2', {}, 'Requests per second'), rate.element)),
    h('h2', {}, 'Events'), log.element);
  put(tools, button('Stop', () => stop(id)), button('Reconnect', () => reconnect(id)), h('a', {href: `/requests?q=${encodeURIComponent(`tunnel:${id}`)}`}, 'Its requests'));
  let detail = null, isLoading = false, shown = '', failure = '';
  async function load() {
    if (isLoading) return;
    isLoading = true;
    try { detail = await get(`tunnels/${encodeURIComponent(id)}`); failure = ''; } catch (error) { failure = error.message; }
    isLoading = false;
    changed();
  }
  load();
  const ticking = setInterval(() => { if (!document.hidden) load(); }, 2000);
  return {
    title: 'Tunnel', grid: log, read: readRequests,
    end() { clearInterval(ticking); },
    update() {
      const found = state.tunnels.get(id) || (detail && detail.tunnel);
      const lines = found ? [
        ['State', stateCell(found.state).t], ['Transport', found.transport || ''], ['Connections', found.connections], ['Streams', `${found.streams} open, ${count.format(found.streams_total)} in all`],
        ['Requests', `${count.format(found.requests)}, ${count.format(found.errors)} failed`], ['Bytes', `↓ ${bytes(found.bytes_down)}  ↑ ${bytes(found.bytes_up)}`],
        ['First byte', found.first_byte_ms.p50 === null ? '' : `p50 ${ms(found.first_byte_ms.p50)} ms, p95 ${ms(found.first_byte_ms.p95)} ms`],
        ['Idle', found.idle_seconds === null ? 'in use' : `for ${seconds(idle(found))}${found.closes_in_seconds === null ? '' : `, closes in ${seconds(Math.max(0, found.closes_in_seconds - passed(found)))}`}`],
      ] : [['State', '○ closed']];
      if (shown !== JSON.stringify(lines)) { shown = JSON.stringify(lines); put(facts, lines.map(([name, value]) => [h('dt', {}, name), h('dd', {}, String(value))]).flat()); }
      for (const each of tools.querySelectorAll('button')) each.disabled = !found;
      put(trouble, failure ? h('p', {class: 'bad'}, failure) : null, found && found.last_error ? h('p', {class: found.state === 'failed' ? 'bad' : 'warn'}, `Last error: ${found.last_error}`) : null);
      const mine = [...state.requests.values()].filter(row => row.tunnel === id);
      pods.set((found ? found.pods : []).map(pod => {
        const of = mine.filter(row => row.pod === pod);
        return {pod, open: of.filter(row => row.took_ms === null).length, requests: of.length, errors: of.filter(isError).length};
      }));
      if (!detail) return;
      rate.draw([...new Array(SECONDS - detail.per_second.length).fill(0), ...detail.per_second]);
      if (names.told !== detail.names.join()) { names.told = detail.names.join(); put(names, detail.names.length ? detail.names.map(name => h('li', {}, name.startsWith('http') ? h('a', {href: name, target: '_blank', rel: 'noopener'}, name) : name)) : h('li', {class: 'dim'}, 'none')); }
      if (command.told !== detail.kubectl) { command.told = detail.kubectl; put(command, detail.kubectl ? [h('pre', {}, detail.kubectl), button('Copy command', () => copy(detail.kubectl, 'the command'))] : h('p', {class: 'dim'}, 'kubectl has no command for this.')); }
      const told = JSON.stringify(detail.first_byte);
      if (chart.told !== told) { chart.told = told; put(chart, histogram(detail.first_byte, 'Time to the first byte')); }
      log.set(detail.events.map((event, at) => ({...event, key: `${event.time} ${event.event} ${at}`})));
    },
    item: () => ({tunnel: id, find: () => ofTunnel(id)}),
  };
}

/** Words, and `field:value`; `!` in front is the inverse. */
function filterOf(text) {
  const parts = text.toLowerCase().split(/\s+/).filter(Boolean).map(word => {
    const not = word.startsWith('!') && word.length > 1, rest = not ? word.slice(1) : word, at = rest.indexOf(':');
    const field = at > 0 ? rest.slice(0, at) : '', value = rest.slice(at + 1);
    const has = found => String(found ?? '').toLowerCase().includes(value);
    const tests = {
      __proto__: null,
      status: row => { const found = String(row.status ?? ''); return value.endsWith('xx') ? found[0] === value[0] : found.startsWith(value); },
      host: row => has(row.host), method: row => String(row.method ?? '').toLowerCase() === value, path: row => has(row.path), pod: row => has(row.pod),
      tunnel: row => has(row.tunnel), kind: row => row.kind === value, error: row => has(row.error),
      ms: row => { const took = row.took_ms ?? row.first_byte_ms ?? 0, number = parseFloat(value.replace(/^[<>]=?/, '')); return value.startsWith('<') ? took < number : took >= number; },
      is: row => ({__proto__: null, error: isError(row), retried: row.retries > 0, replay: Boolean(row.replay_of), open: row.took_ms === null})[value] ?? false,
    };
    const test = tests[field] || (row => `${row.method ?? ''} ${row.host} ${row.path} ${row.status ?? ''} ${row.pod ?? ''} ${row.error ?? ''} ${row.kind}`.toLowerCase().includes(rest));
    return row => test(row) !== not;
  });
  return row => parts.every(part => part(row));
}
function requests() {
  const params = query();
  const search = h('input', {type: 'search', 'aria-label': 'Filter the requests', placeholder: 'Filter: status:5xx host:web method:POST path:/api ms:>500 pod:web-1', value: params.get('q') || '',
    oninput: () => { setQuery({q: search.value}); changed(); }});
  const total = h('span', {class: 'count', role: 'status'});
  const pause = button('Pause', () => {
    paused.is = !paused.is;
    if (!paused.is) readAll();
    changed();
  }, {'aria-pressed': 'false'});
  let since = 0, open = params.get('id');
  const marks = row => [row.replay_of ? `↻ replay of ${row.replay_of}` : '', row.retries ? `⟳ sent ${row.retries + 1} times` : '', row.error ? row.error : ''].filter(Boolean).join(', ');
  const grid = new Grid({caption: 'Requests and connections', fixed: true, key: row => row.id, empty: 'No requests yet, or none match the filter.', open: row => show(row.id),
    columns: [
      {name: 'Time', c: 'nowrap', sort: row => row.id, cell: row => clock(row.time)},
      {name: 'Method', sort: row => row.method || row.kind, cell: row => row.method && row.kind === 'http' ? row.method : row.kind},
      {name: 'Host', c: 'host', sort: row => row.host, cell: row => row.host.replace(/:\d+$/, '')},
      {name: 'Path', c: 'path', sort: row => row.path, cell: row => row.path},
      {name: 'Status', c: 'nowrap', sort: row => row.status || 0, cell: row => ({t: row.grpc_status !== null && row.grpc_status !== undefined ? `${row.status} / ${row.grpc_status}` : row.status || (row.took_ms === null ? 'open' : row.error ? 'broken' : ''), c: isError(row) ? 'bad' : statusClass(row.status)})},
      {name: 'Pod', c: 'wide', sort: row => row.pod || '', cell: row => row.pod || ''},
      {name: 'First byte (ms)', num: true, c: 'wide', sort: row => row.first_byte_ms ?? -1, cell: row => ms(row.first_byte_ms)},
      {name: 'Total (ms)', num: true, sort: row => row.took_ms ?? Infinity, cell: row => row.took_ms === null ? 'open' : ms(row.took_ms)},
      {name: 'Bytes', num: true, c: 'wide', sort: row => row.bytes_down + row.bytes_up, cell: row => bytes(row.bytes_down + row.bytes_up)},
      {name: 'Note', c: 'wide', sort: marks, cell: row => ({t: marks(row), c: row.error ? 'bad' : 'dim'})},
    ]});
  const side = h('aside', {'aria-label': 'The selected request', hidden: true});
  const split = h('div', {class: 'split'}, grid.element, side);
  put(main, h('h1', {}, 'Requests'), h('div', {class: 'tools'}, search, pause, button('Clear', () => { since = Math.max(0, ...state.requests.keys()); changed(); }), ...requestTools(), total), split);
  let shownId = null, shownTook;
  async function show(id) {
    open = String(id);
    setQuery({id: open});
    grid.mark(Number(id));
    shownId = null;
    changed();
  }
  const toggle = isOpen => grid.still(() => { side.hidden = !isOpen; split.classList.toggle('open', isOpen); grid.measured = 0; grid.render(); });
  function close() {
    const hadFocus = side.contains(document.activeElement), key = Number(open);
    open = null;
    shownId = null;
    setQuery({id: ''});
    toggle(false);
    if (hadFocus) { main.focus({preventScroll: true}); grid.select(key); }
  }
  async function fillSide(row) {
    const detail = await get(`requests/${row.id}`).catch(() => row);
    if (String(detail.id) !== open) return;
    const isNew = side.hidden, reach = () => [...side.querySelectorAll('a,button')], had = reach().indexOf(document.activeElement);
    toggle(true);
    put(side, requestDetail(detail, close));
    if (had >= 0 && reach()[had]) reach()[had].focus({preventScroll: true});
    // In a narrow window the detail lies over the last rows.
    const element = grid.byKey.get(row.id);
    if (isNew && element) element.scrollIntoView({block: 'nearest'});
  }
  return {
    title: 'Requests', grid, search, read: readRequests,
    end() { paused.is = false; },
    /** Another adit counts its requests from one again. */
    restarted() { since = 0; close(); },
    update() {
      pause.setAttribute('aria-pressed', String(paused.is));
      const isWanted = filterOf(search.value), rows = [];
      for (const id of [...state.requests.keys()].sort((a, b) => b - a)) {
        const row = state.requests.get(id);
        if (id > since && isWanted(row)) rows.push(row);
      }
      setText(total, `${count.format(rows.length)} of ${count.format(state.requests.size)}${paused.is ? ', paused' : ''}`);
      grid.set(rows);
      const row = open && state.requests.get(Number(open));
      if (row && (shownId !== row.id || shownTook !== row.took_ms)) { shownId = row.id; shownTook = row.took_ms; fillSide(row); }
    },
    item: () => { const row = grid.selected; return row && {request: row, tunnel: row.tunnel, find: () => ofRequest(row.id)}; },
    errors: () => { search.value = search.value.includes('is:error') ? search.value.replace(/\s*is:error/, '') : `${search.value} is:error`.trim(); setQuery({q: search.value}); changed(); },
    pause: () => pause.click(), close, refresh: () => { shownId = null; changed(); },
  };
}
function requestTools() { return [h('a', {href: `${API}har`, download: 'adit.har'}, 'Save all as HAR')]; }
function pairs(list) {
  return h('dl', {class: 'facts mono'}, list.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]).flat());
}
function requestDetail(row, close) {
  const facts = [['Time', new Date(row.time).toLocaleString('en-GB')], ['Kind', row.kind], ['Host', row.host], ['Path', row.path], ['Status', String(row.status ?? '')], ['Error', row.error],
    ['Route', row.route], ['Pod', row.pod], ['Sent again', row.retries ? String(row.retries) : null], ['Bytes', `↑ ${bytes(row.bytes_up)}  ↓ ${bytes(row.bytes_down)}`],
    ['Messages', row.messages || row.messages_up ? (row.kind === 'websocket' ? `↓ ${row.messages}  ↑ ${row.messages_up}` : String(row.messages)) : null], ['gRPC status', row.grpc_status === null || row.grpc_status === undefined ? null : String(row.grpc_status)]].filter(([, value]) => value);
  const elements = [h('div', {class: 'tools'}, h('h2', {}, `${row.method || row.kind} ${row.path}`), button('Close', close)), h('h3', {}, 'Timing'), waterfall(row),
    h('dl', {class: 'facts'}, facts.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]).flat())];
  if (row.tunnel) elements.push(h('p', {}, 'Tunnel: ', h('a', {href: tunnelAddress(row.tunnel)}, row.tunnel)));
  if (row.replay_of) elements.push(h('p', {}, 'A replay of ', h('a', {href: `/requests?id=${row.replay_of}`}, `request ${row.replay_of}`)));
  const kept = row.exchange;
  if (!kept) return elements;
  const no = kept.no_replay, isRecording = kept.recording_seconds !== null;
  elements.push(h('div', {class: 'tools'}, button('Copy as curl', () => copy(kept.curl, 'the command')),
    h('a', {href: `${API}requests/${row.id}/har`, download: `adit-${row.id}.har`}, 'Save as HAR'),
    button('Replay', () => replay(row.id), {disabled: Boolean(no), title: no}), button('Replay edited', () => replayEdited(row), {disabled: Boolean(no) && !no.includes('body'), title: no})));
  if (no) elements.push(h('p', {class: 'dim'}, `No replay: ${no}.`));
  if (row.route) elements.push(h('p', {}, button(isRecording ? 'Stop recording' : 'Record bodies', async () => {
    await act(isRecording ? 'Not recorded any more' : 'Recorded for 10 minutes', 'record', {route: row.route, minutes: isRecording ? 0 : 10});
    if (view.refresh) view.refresh();
  }, {'aria-pressed': String(isRecording)}), ` of ${row.route}`, isRecording ? ` for ${seconds(kept.recording_seconds)}` : ' for 10 minutes, 256 KiB each, in memory'));
  elements.push(h('h3', {}, 'Request'), h('p', {class: 'mono'}, `${row.method} ${kept.target} ${kept.version}`), pairs(kept.request_headers), bodyOf(kept.request_body));
  if (kept.response_headers.length) elements.push(h('h3', {}, 'Answer of the pod'), pairs(kept.response_headers));
  elements.push(bodyOf(kept.response_body));
  return elements;
}
function bodyOf(body) {
  if (!body || !body.bytes) return null;
  const text = body.text ?? `${body.base64}\n(base64)`, MOST = 20000, pre = h('pre', {tabindex: 0, role: 'region', 'aria-label': 'Body'}, text.slice(0, MOST));
  const more = text.length > MOST && h('p', {}, `These are its first ${plural(MOST, 'character')} of ${count.format(text.length)}. `, button('Show all', () => { pre.textContent = text; more.remove(); pre.focus(); }));
  return h('div', {}, h('h3', {}, `Body, ${bytes(body.bytes)}${body.is_whole ? '' : ', its start'}`), pre, more, button('Copy the body', () => copy(text, 'the body')));
}
async function replay(id) {
  say('Sent again: the answer has up to 30 s', true);
  const row = await act('Sent again', `requests/${id}/replay`);
  if (row) go(`/requests?id=${row.id}`);
}
function replayEdited(row) {
  const kept = row.exchange;
  const field = (label, element) => h('p', {}, h('label', {}, label, element));
  const method = h('input', {type: 'text', value: row.method}), target = h('input', {type: 'text', value: kept.target});
  const headers = h('textarea', {rows: 8}), body = h('textarea', {rows: 6});
  headers.value = kept.request_headers.filter(([name]) => !['host', 'content-length', 'connection', 'transfer-encoding'].includes(name)).map(pair => pair.join(': ')).join('\n');
  const first = kept.request_body && kept.request_body.is_whole ? kept.request_body.text ?? '' : '';
  body.value = first;
  const box = h('dialog', {'aria-label': 'Replay edited'}, h('h2', {}, 'Replay edited'), h('p', {class: 'dim'}, `It goes to ${row.tunnel}. A hidden value is sent as it was.`),
    field('Method', method), field('Path and query', target), field('Headers', headers), field('Body', body));
  const failed = h('p', {class: 'bad', role: 'alert'});
  const send = button('Send', async () => {
    const edits = {method: method.value.trim(), headers: headers.value.split('\n').filter(line => line.includes(':')).map(line => [line.slice(0, line.indexOf(':')).trim(), line.slice(line.indexOf(':') + 1).trim()])};
    if (target.value !== kept.target) edits.target = target.value;
    if (body.value !== first || kept.no_replay) edits.text = body.value;
    failed.textContent = '';
    send.disabled = true;
    setText(send, 'Waiting for the answer');
    try {
      const again = await post(`requests/${row.id}/replay`, edits);
      if (!box.open) return;
      box.close();
      say('Sent again');
      go(`/requests?id=${again.id}`);
    } catch (error) { failed.textContent = `Failed: ${error.message}`; }
    send.disabled = false;
    setText(send, 'Send');
  });
  box.append(failed, h('div', {class: 'tools'}, send, button('Cancel', () => box.close())));
  box.addEventListener('close', () => box.remove());
  document.body.append(box);
  box.showModal();
}

function log() {
  const params = query();
  const search = h('input', {type: 'search', 'aria-label': 'Search the log', placeholder: 'Search', value: params.get('q') || '', oninput: () => { setQuery({q: search.value}); changed(); }});
  const LEVELS = ['error', 'warn', 'info', 'debug', 'trace'];
  const level = h('select', {'aria-label': 'Level', onchange: () => { setQuery({level: level.value}); changed(); }}, LEVELS.map(name => h('option', {value: name, selected: (params.get('level') || 'trace') === name}, `${name} and above`)));
  const total = h('span', {class: 'count', role: 'status'}), reload = h('p'), config = h('pre', {tabindex: 0, role: 'region', 'aria-label': 'Configuration'});
  const grid = new Grid({caption: 'Log', fixed: true, c: 'log', key: row => row.id, empty: 'No log line matches the search.', columns: [
    {name: 'Time', c: 'nowrap', cell: row => clock(row.time)},
    {name: 'Level', cell: row => ({t: row.level, c: row.level === 'error' ? 'bad' : row.level === 'warn' ? 'warn' : 'dim'})},
    {name: 'Text', cell: row => row.text}]});
  put(main, h('h1', {}, 'Log'), h('div', {class: 'tools'}, search, level, total), grid.element, h('h2', {}, 'Configuration as loaded'), reload, config);
  const load = async () => {
    try {
      const found = await get('config');
      config.told = found.loaded_at;
      config.keys = found.changed || [];
      setText(config, found.config === null ? 'No configuration file: defaults apply.' : JSON.stringify(found.config, null, 2));
      changed();
    } catch (error) { say(error.message); }
  };
  load();
  return {
    title: 'Log', grid, search, read: readLog,
    update() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean), most = LEVELS.indexOf(level.value), rows = [];
      for (const id of [...state.log.keys()].sort((a, b) => b - a)) {
        const row = state.log.get(id);
        if (LEVELS.indexOf(row.level) <= most && words.every(word => row.text.toLowerCase().includes(word))) rows.push(row);
      }
      setText(total, `${count.format(rows.length)} of ${plural(state.log.size, 'line')}`);
      grid.set(rows);
      const status = state.status;
      if (!status) return;
      const keys = config.keys;
      setText(reload, `${status.config || 'No file'}, loaded at ${status.loaded_at}. ${keys && keys.length ? `The last reload changed ${keys.join(', ')}.` : ''}`.trim());
      if (config.told && config.told !== status.loaded_at) { config.told = status.loaded_at; load(); }
    },
  };
}

// ---- where we are

function route() {
  const path = location.pathname;
  if (view && view.end) view.end();
  view = path === '/services' ? services() : path === '/requests' ? requests() : path === '/log' ? log() : path.startsWith('/tunnel/') ? tunnel() : now();
  document.title = `${view.title}${path.startsWith('/tunnel/') ? ` ${tunnelId()}` : ''} · adit`;
  for (const link of document.querySelectorAll('nav a')) {
    if (link.getAttribute('href') === path) link.setAttribute('aria-current', 'page'); else link.removeAttribute('aria-current');
  }
  // This view may show more rows than the events brought.
  readAt = 0;
  readAll();
  changed();
}
function go(address) {
  history.pushState(null, '', address);
  route();
  scrollTo(0, 0);
  main.focus({preventScroll: true});
}
document.addEventListener('click', event => {
  const link = event.target.closest('a');
  if (!link || link.target || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || link.hasAttribute('download')) return;
  if (link.origin !== location.origin || link.getAttribute('href').startsWith('#') || link.pathname.startsWith('/api/')) return;
  event.preventDefault();
  go(link.pathname + link.search);
});
addEventListener('popstate', route);

// ---- keys

const keysAreOn = () => localStorage.getItem('adit-keys') !== 'off';
const KEYS = [['/', 'search'], ['j k', 'next and previous row'], ['Enter', 'open the row'], ['Esc', 'close, or leave the search'], ['o', 'open in the browser'], ['c', 'copy the URL'], ['y', 'copy the command'],
  ['s', 'stop the tunnel'], ['r', 'reconnect the tunnel, or replay the request'], ['p', 'pause'], ['e', 'errors only'], ['g n, g s, g r, g l', 'go to Now, Services, Requests, Log'], ['g t', 'go to the tunnel of the row'], ['?', 'this list']];
function help() {
  const box = h('dialog', {'aria-label': 'Keys'}, h('h2', {}, 'Keys'));
  const on = h('input', {type: 'checkbox', id: 'keys-on', onchange: () => localStorage.setItem('adit-keys', on.checked ? 'on' : 'off')});
  on.checked = keysAreOn();
  box.append(h('dl', {class: 'facts'}, KEYS.map(([key, what]) => [h('dt', {}, h('kbd', {}, key)), h('dd', {}, what)]).flat()),
    h('p', {}, on, ' ', h('label', {for: 'keys-on'}, 'Enable keyboard shortcuts')), h('div', {class: 'tools'}, button('Close', () => box.close())));
  box.addEventListener('close', () => box.remove());
  document.body.append(box);
  box.showModal();
}
let wentAt = 0;
function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector('dialog[open]')) return;
  const isTyping = event.target.closest('input,textarea,select');
  if (event.key === 'Escape') {
    if (!isTyping) { if (view.close) view.close(); return; }
    // A browser would empty the field, and leave the rows as they are.
    event.preventDefault();
    event.target.blur();
    return;
  }
  if (isTyping) return;
  if (event.key === '?') { event.preventDefault(); return help(); }
  const grid = view.grid, item = (view.item && view.item()) || {};
  const isInGrid = event.target.closest('tbody tr');
  if (event.key === 'Enter' && isInGrid && event.target === isInGrid) { if (grid && grid.open && grid.selected) { event.preventDefault(); grid.open(grid.selected); } return; }
  const arrows = {ArrowDown: 1, ArrowUp: -1, PageDown: 20, PageUp: -20}[event.key];
  if (arrows && isInGrid && grid) { event.preventDefault(); return grid.move(arrows); }
  if (!keysAreOn()) return;
  const isAfterG = Date.now() - wentAt < 1500;
  wentAt = 0;
  const there = isAfterG && {n: '/', s: '/services', r: '/requests', l: '/log', t: item.tunnel ? tunnelAddress(item.tunnel) : null}[event.key];
  if (there) { event.preventDefault(); return go(there); }
  const actions = {
    '/': () => view.search && view.search.focus(), j: () => grid && grid.move(1), k: () => grid && grid.move(-1), g: () => { wentAt = Date.now(); },
    o: () => use(item, 'url', url => /^https?:/.test(url) ? open(url, '_blank', 'noopener') : say(`No browser opens ${url}`)),
    c: () => use(item, 'url', url => copy(url, 'the URL')), y: () => use(item, 'command', command => copy(command, 'the command')),
    s: () => item.tunnel && stop(item.tunnel), r: () => item.request ? replayKey(item.request) : item.tunnel && reconnect(item.tunnel), p: () => view.pause && view.pause(), e: () => view.errors && view.errors(),
  };
  if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
}
// URL and command of a tunnel or a request: its row has neither.
async function ofTunnel(id) {
  const {names, kubectl} = await get(`tunnels/${encodeURIComponent(id)}`);
  return {url: names.find(name => name.startsWith('http')) || names[0], command: kubectl};
}
async function ofRequest(id) {
  const {exchange} = await get(`requests/${id}`);
  return exchange ? {url: exchange.url, command: exchange.curl} : {};
}
async function use(item, what, then) {
  try {
    const text = item[what] || (item.find && (await item.find())[what]);
    if (text) then(text);
    else if (item.find) say(what === 'url' ? 'It has no URL' : 'There is no command for it');
  } catch (error) { say(error.message); }
}
const replayKey = row => ask('Replay', `${row.method || row.kind} ${row.host}${row.path}`, () => replay(row.id), 'Send it again');
document.addEventListener('keydown', key);

function relay() {
  let before = null;
  const columns = [
    {name: 'Public', c: 'id', sort: row => row.public, cell: row => row.public}, {name: 'Kind', cell: row => row.kind}, {name: 'Key', sort: row => row.key, cell: row => row.key},
    {name: 'Client', sort: row => row.client, cell: row => row.client}, {name: 'Open for', num: true, c: 'wide', sort: row => row.open_seconds, cell: row => seconds(row.open_seconds)},
    {name: 'Streams', num: true, sort: row => row.streams, cell: row => row.streams}, {name: 'Visitors', num: true, sort: row => row.visitors, cell: row => count.format(row.visitors)},
    {name: 'Refused', num: true, sort: row => row.refused, cell: row => ({t: row.refused, c: row.refused ? 'bad' : 'dim'})},
    {name: 'Up', num: true, c: 'wide', sort: row => row.bytes_up, cell: row => bytes(row.bytes_up)}, {name: 'Down', num: true, c: 'wide', sort: row => row.bytes_down, cell: row => bytes(row.bytes_down)},
    {name: 'Per second', num: true, sort: row => row.rate, cell: row => bytes(Math.round(row.rate))}];
  const grid = new Grid({caption: 'Tunnels', columns, key: row => row.public, empty: 'No client has a tunnel.'});
  const refused = new Grid({caption: 'Refused', key: row => row.key, empty: 'No connections were refused.', columns: [
    {name: 'Time', c: 'nowrap', cell: row => clock(row.time)}, {name: 'Client', cell: row => row.client}, {name: 'What', cell: row => row.what}, {name: 'Why', cell: row => row.reason}]});
  put(main, h('h1', {}, 'Relay'), h('h2', {}, 'Tunnels'), grid.element, h('h2', {}, 'Refused'), refused.element);
  let isLoading = false;
  const load = async () => {
    if (document.hidden || isLoading) return;
    isLoading = true;
    try {
      const found = await get('relay', PATIENCE / 2), at = Date.now();
      const rate = row => { const old = before && before.rows.get(row.public); return old === undefined || old === null ? 0 : Math.max(0, (row.bytes_up + row.bytes_down - old) * 1000 / (at - before.at)); };
      grid.set(found.tunnels.map(row => ({...row, rate: rate(row)})));
      refused.set(found.refused.map((row, at) => ({...row, key: `${row.time} ${row.client} ${at}`})));
      before = {at, rows: new Map(found.tunnels.map(row => [row.public, row.bytes_up + row.bytes_down]))};
      setText($('#place'), `relay ${found.version}`);
      state.at = new Date();
      notice('');
    } catch { notice(`No connection to the relay.${since()}`); }
    isLoading = false;
  };
  view = {title: 'Relay', grid};
  load();
  setInterval(load, 2000);
}

if (MODE === 'relay') relay();
if (MODE === 'laptop') {
  $('header').insertBefore(button('Keys', help, {'aria-haspopup': 'dialog', title: 'The keys of this page (?)'}), $('#state'));
  document.addEventListener('visibilitychange', () => {
    if (document.hidden) return disconnect();
    connect();
    if (view.shown) view.shown();
  });
  route();
  connect();
  setInterval(listen, 1000);
}
})();
