// What the page does. Everything that it shows follows from its address, whose parameters are those of the API.

import { capitalized, card, count, facet, h, message, product, ranking, shownValue, skeleton, titleOf } from "./view.js";
import { asForm, photoOf, whenChosen } from "./photo.js";

const K = 24;
const ANSWERS_KEPT = 30;
const WIDE = matchMedia("(min-width: 60rem)");
const at = (id) => document.getElementById(id);
const box = at("query");
const answers = new Map();
let settings = null;
let running = new AbortController();

// ---- the address ----

const state = () => Object.fromEntries(new URLSearchParams(location.search));

const address = (changes) => {
  const values = Object.entries({ ...state(), ...changes }).filter(([, value]) => value !== null && value !== "");
  return `?${new URLSearchParams(values)}`;
};

const go = (target) => {
  history.pushState(null, "", target);
  show().then(() => scrollTo(0, 0));
};

// Conditions of the filter, as far as it is a list of them.
const conditions = (now) => {
  try {
    const read = JSON.parse(now.filter);
    return Array.isArray(read) && read.every((one) => Array.isArray(one) && typeof one[0] === "string") ? read : [];
  } catch {
    return [];
  }
};

const filtered = (list) => address({ filter: list.length ? JSON.stringify(list) : null });

// ---- the service ----

class Problem extends Error {}

const ask = async (url) => {
  if (answers.has(url)) return answers.get(url);
  const began = performance.now();
  let response, body;
  try {
    // What follows # names the photo that goes with an address.
    const [to, photo] = url.split("#");
    const [path, options] = photo ? asForm(to, photo) : [to, {}];
    response = await fetch(path, { ...options, signal: running.signal, headers: { accept: "application/json" } });
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service does not answer. It may be starting again, or the connection is lost.");
  }
  if (!response.ok) throw new Problem(body.error ?? `The service answered ${response.status}.`);
  const answer = { ...body, ms: performance.now() - began };
  answers.set(url, answer);
  if (answers.size > ANSWERS_KEPT) answers.delete(answers.keys().next().value);
  return answer;
};

const urls = (now) => {
  const most = settings.products - (now.like === undefined ? 0 : 1);
  const k = /^\d+$/.test(now.k ?? K) ? Math.min(now.k ?? K, settings.max_k, most) || null : now.k;
  const wanted = now.like === undefined ? settings.parameters : ["k", "filter"];
  const values = new URLSearchParams(Object.entries({ ...now, k }).filter(([name, value]) => wanted.includes(name) && value !== null));
  const path = now.like === undefined ? "search" : `products/${encodeURIComponent(now.like)}`;
  const photo = now.photo && now.like === undefined ? `#${now.photo}` : "";
  return sides(now).map((prefix) => `${prefix}${path}?${values}${photo}`);
};

const sides = (now) => (settings.models.length > 1 && now.compare !== "0" && !now.photo ? ["", "compare/"] : [""]);

// ---- what is shown ----

const show = async () => {
  const now = state();
  running.abort();
  running = new AbortController();
  box.value = now.query ?? "";
  const started = now.like !== undefined || Boolean(now.query?.trim()) || Boolean(now.photo);
  drawFilters(now, started);
  document.title = `${now.query ? `${now.query} – ` : ""}Product search`;
  if (!started) return drawStart();
  if ([...(now.query ?? "")].length > settings.max_query_chars) {
    const text = `It has ${count([...now.query].length, "character")}, and the service takes at most ${settings.max_query_chars.toLocaleString()}.`;
    return draw(now, message("error", "This query is too long", text));
  }
  const problem = now.photo && now.like === undefined ? unusable(now.photo) : null;
  if (problem) return draw(now, message("error", "This photo cannot be searched for", problem, h("a", { href: address({ photo: null }), "data-go": true }, "Search without it")));
  const waited = urls(now);
  const known = waited.every((url) => answers.has(url));
  at("results").setAttribute("aria-busy", "true");
  if (!known && !document.querySelector(".grid")) draw(now, skeleton(8));
  // Answers that are there are drawn at once, so that the browser finds its place again on the way back.
  const found = known ? waited.map((url) => answers.get(url)) : await Promise.all(waited.map((url) => ask(url).catch((error) => error)));
  if (found.some((one) => one.name === "AbortError")) return;
  at("results").removeAttribute("aria-busy");
  found.length > 1 ? drawPair(now, found) : drawOne(now, found[0]);
};

const unusable = (name) => {
  if (!settings.photo_queries) return "The service searches by words alone.";
  const most = settings.max_photo_kib * 1024;
  if (!photoOf(name)) return "It was only kept while this page was open. Choose it again.";
  return photoOf(name).file.size > most ? `It has ${count(Math.ceil(photoOf(name).file.size / 2 ** 20), "MiB", "MiB")}, and the service takes at most ${count(most / 2 ** 20, "MiB", "MiB")}.` : null;
};

// The photo that is searched for.
const askedPhoto = (now) =>
  now.photo && now.like === undefined && photoOf(now.photo)
    ? [h("div", { class: "asked" }, h("img", { src: photoOf(now.photo).shown, alt: "The photo that is searched for" }), h("a", { class: "chip", href: address({ photo: null }), "data-go": true }, "Remove the photo ×"))]
    : [];

const draw = (now, ...content) => {
  at("content").replaceChildren(h("h1", { class: "sr" }, document.title), ...content);
  at("results").removeAttribute("aria-busy");
  at("toolbar").hidden = true;
};

const hitsOf = (answer) => answer.hits ?? answer.neighbours ?? [];
const took = (answer) => `${Math.max(1, Math.round(answer.ms))} ms`;
const summary = (answer) => `${count(hitsOf(answer).length, "product")} · ${took(answer)}`;

const failed = (error, now) => {
  const again = h("button", { type: "button", onclick: () => show() }, "Try again");
  const given = Object.keys(now).filter((name) => !["query", "photo", "like", "compare"].includes(name));
  const clear = given.length ? h("a", { href: address(Object.fromEntries(given.map((name) => [name, null]))), "data-go": true }, "Clear filters and settings") : null;
  return message("error", "That did not work", error.message[0].toUpperCase() + error.message.slice(1), again, ...(clear ? [clear] : []));
};

const nothing = (now) => {
  const reasons = { filter: ["No product fulfils all of the filters.", "Clear the filters"], min_score: ["No product reaches the lowest score.", "Drop the lowest score"], mode: ["No product has a word of the query.", "Search by vectors"] };
  const given = Object.keys(reasons).filter((name) => now[name]);
  const links = given.map((name) => h("a", { href: address({ [name]: null, ...(name === "mode" ? { weight: null } : {}) }), "data-go": true }, reasons[name][1]));
  return message("empty", "Nothing found", given.length === 1 ? reasons[given[0]][0] : "There is no product for this query.", ...links);
};

const listed = (now, answer, marks) =>
  hitsOf(answer).length
    ? h("ol", { class: "grid" }, hitsOf(answer).map((hit) => card(hit, settings, address({ like: hit.product_id }), marks?.get(hit.product_id))))
    : nothing(now);

// Of "more like this", the product itself.
const anchor = (now, answer) => {
  if (now.like === undefined || !answer.metadata) return [];
  document.title = `Like ${titleOf(answer)} – Product search`;
  const what = now.query ? h("q", {}, h("bdi", {}, now.query)) : "the photo";
  const back = now.query || now.photo ? [h("a", { class: "back", href: address({ like: null }), "data-go": true }, "← Results for ", what)] : [];
  return [...back, product(answer, settings), h("h2", { class: "like" }, "More like this")];
};

const drawOne = (now, answer) => {
  if (answer instanceof Error) return draw(now, ...askedPhoto(now), failed(answer, now));
  draw(now, ...anchor(now, answer), ...askedPhoto(now), listed(now, answer));
  drawToolbar(now, summary(answer));
};

const drawPair = (now, found) => {
  const places = found.map((answer) => new Map(hitsOf(answer).map((hit) => [hit.product_id, hit.rank])));
  const columns = found.map((answer, side) => {
    const theirs = places[1 - side];
    const marks = new Map(
      [...places[side].keys()].map((id) => [id, theirs.has(id) ? { kind: "both", text: `also #${theirs.get(id)}` } : { kind: "only", text: "only here" }]),
    );
    const only = [...marks.values()].filter((mark) => mark.kind === "only").length;
    const failing = answer instanceof Error;
    return h(
      "section",
      { class: "side", "aria-label": `Found by ${settings.models[side]}` },
      h("header", {}, h("h2", {}, settings.models[side]), failing ? null : h("p", {}, `${took(answer)} · ${only} only here`)),
      failing ? failed(answer, now) : listed(now, answer, marks),
    );
  });
  const there = found.find((answer) => !(answer instanceof Error));
  draw(now, ...(there ? anchor(now, there) : []), h("div", { class: "pair" }, columns));
  const both = [...places[0].keys()].filter((id) => places[1].has(id)).length;
  drawToolbar(now, `${count(both, "product")} found by both`);
};

const drawStart = () => {
  const examples = settings.facets.find((one) => one.kind === "values" && typeof one.values[0]?.value === "string")?.values ?? [];
  const links = examples.slice(0, 6).map(({ value }) => h("a", { class: "chip", href: address({ query: value, like: null }), "data-go": true }, h("bdi", {}, value)));
  const keys = h("p", { class: "keys" }, h("kbd", {}, "/"), " to search, ", h("kbd", {}, "↓"), " ", h("kbd", {}, "→"), " to walk through products, ", h("kbd", {}, "Enter"), " for more like one");
  draw({}, h("div", { class: "start" }, h("h2", {}, `Search ${count(settings.products, "product")}`), h("p", {}, "Say what it is, and what it looks like."), links.length ? h("p", { class: "chips" }, links) : "", keys));
};

const say = (text) => {
  at("status").textContent = text;
};

const drawToolbar = (now, text) => {
  const sizes = [...new Set([12, 24, 48, 96, Number(now.k ?? K)])].filter((k) => k <= settings.max_k).sort((a, b) => a - b);
  const select = h("select", { onchange: (event) => go(address({ k: event.target.value })) }, sizes.map((k) => h("option", { value: k, selected: k === Number(now.k ?? K) }, k)));
  const compare = settings.models.length > 1 && h("label", { class: "switch" }, h("input", { type: "checkbox", checked: now.compare !== "0", onchange: (event) => go(address({ compare: event.target.checked ? null : "0" })) }), `Compare with ${settings.models[1]}`);
  const options = now.like === undefined ? [ranking(settings.rankings, now, (changes) => go(address(changes)))] : [];
  options.forEach((one) => { one.open = at("toolbar").querySelector(".options")?.open ?? false; });
  at("toolbar").hidden = false;
  redraw(at("toolbar"), h("p", { class: "summary" }, text), ...options, ...(compare ? [compare] : []), h("label", {}, "Show ", select));
  say(text);
};

const drawFilters = (now, started) => {
  const aside = at("filters");
  const list = conditions(now);
  aside.hidden = !now.filter && !(started && settings.facets.length);
  document.body.classList.toggle("filtered", !aside.hidden);
  const open = aside.firstChild ? aside.firstChild.open : WIDE.matches;
  const chips = list.map((condition, place) => {
    const [column, operator, value] = condition;
    const words = { "<=": "at most", ">=": "at least", "<": "below", ">": "above", in: "", contains: "", "=": "", "==": "" };
    const text = `${capitalized(column)} ${words[operator] ?? operator} ${shownValue(value)}`.replace(/\s+/g, " ");
    return h("a", { class: "chip", href: filtered(list.filter((_, other) => other !== place)), "data-go": true, "aria-label": `Remove the filter ${text}` }, h("bdi", {}, text), " ×");
  });
  if (now.filter && !list.length) chips.push(h("a", { class: "chip", href: address({ filter: null }), "data-go": true }, "The address's filter ×"));
  const groups = settings.facets.map((one) => {
    const own = list.filter((condition) => condition[0] === one.column);
    return facet(one, own, (replaced) => go(filtered([...list.filter((condition) => condition[0] !== one.column), ...replaced])));
  });
  const clear = chips.length ? [h("a", { class: "quiet", href: address({ filter: null }), "data-go": true }, "Clear all")] : [];
  const title = h("summary", {}, "Filters", chips.length ? h("span", { class: "number" }, chips.length) : "");
  redraw(aside, h("details", { open }, title, chips.length ? h("div", { class: "chips" }, chips, clear) : "", groups));
};

// Replaces the controls in a place; the one that has the focus keeps it.
const redraw = (place, ...content) => {
  const name = (control) => control.dataset.name;
  const focused = place.contains(document.activeElement) ? name(document.activeElement) : undefined;
  place.replaceChildren(...content);
  place.querySelectorAll("input, select").forEach((control) => { control.dataset.name = control.ariaLabel ?? control.closest("label").textContent; });
  const again = [...place.querySelectorAll("input, select")].find((control) => name(control) === focused);
  if (focused !== undefined) again?.focus({ preventScroll: true });
};

// ---- what people do ----

addEventListener("popstate", () => show());

at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = box.value.trim();
  if (query.length > settings?.max_query_chars) {
    // Not into the address, which would be too long as well.
    draw({}, message("error", "This query is too long", `It has ${count([...query].length, "character")}, and the service takes at most ${settings.max_query_chars.toLocaleString()}.`));
  } else if (settings) go(address({ query, like: null }));
});

document.addEventListener("click", (event) => {
  const options = document.querySelector(".options[open]");
  if (options && !options.contains(event.target)) options.open = false;
  const link = event.target.closest?.("a[data-go]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  if (settings) go(link.getAttribute("href"));
  if (link.dataset.hit) at("results").focus({ preventScroll: true });
});

// The nearest hit in a direction; at the end of a row the next one.
const beside = (links, from, key) => {
  const across = key === "ArrowLeft" || key === "ArrowRight";
  const forward = key === "ArrowRight" || key === "ArrowDown";
  const middle = (link) => {
    const { left, top, width, height } = link.closest("li").getBoundingClientRect();
    return across ? [left + width / 2, top + height / 2] : [top + height / 2, left + width / 2];
  };
  const [main, side] = middle(from);
  const distances = links.map((link) => {
    const [ahead, aside] = middle(link);
    const far = (forward ? 1 : -1) * (ahead - main);
    return far > 8 && (!across || Math.abs(aside - side) < 40) ? far + 2 * Math.abs(aside - side) : Infinity;
  });
  const nearest = Math.min(...distances);
  if (nearest < Infinity) return links[distances.indexOf(nearest)];
  return across ? links[links.indexOf(from) + (forward ? 1 : -1)] : undefined;
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const { key, target } = event;
  const options = document.querySelector(".options[open]");
  if (key === "Escape" && options) {
    options.open = false;
    options.firstChild.focus();
  }
  const typing = target.matches?.("input:not([type=checkbox]), select, textarea");
  if (key === "/" && !typing) {
    event.preventDefault();
    box.focus();
    box.select();
  }
  if (!/^Arrow(Left|Right|Up|Down)$/.test(key) || (typing && !(target === box && key === "ArrowDown"))) return;
  const links = [...document.querySelectorAll("a[data-hit]")];
  const from = links.includes(target) ? target : null;
  const free = target === box || target === document.body || target === at("results");
  const next = from ? beside(links, from, key) : free && key === "ArrowDown" && target !== document.body ? links[0] : undefined;
  if (from || next) event.preventDefault();
  if (next) next.focus();
  else if (from && key === "ArrowUp") box.focus();
});

const start = async () => {
  try {
    settings = await ask("page.json");
    answers.clear();
  } catch (error) {
    const again = h("button", { type: "button", onclick: start }, "Try again");
    return at("content").replaceChildren(message("error", "That did not work", error.message, again));
  }
  // A keyboard that covers half of a phone is not asked for.
  if (!location.search && matchMedia("(hover: hover)").matches) box.focus();
  at("size").textContent = count(settings.products, "product");
  // Once, however often the settings had to be asked for.
  if (settings.photo_queries && at("by-photo").hidden) whenChosen(at("photo"), (photo) => go(address({ photo, like: null })));
  at("by-photo").hidden = !settings.photo_queries;
  await show();
  performance.mark("shown");
};

start();
