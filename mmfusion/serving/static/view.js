// What is drawn. All texts of products and people become text nodes or attributes, so that markup in them is shown.

export const h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
};

const number = new Intl.NumberFormat();
export const count = (many, one, more = `${one}s`) => `${number.format(many)} ${many === 1 ? one : more}`;
export const capitalized = (name) => (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll("_", " ");
export const titleOf = (product) => (product.metadata.title ?? "").trim() || "No title";

const amount = (value, currency) => {
  if (typeof value === "string" && !/^\d+(\.\d+)?$/.test(value)) return value;
  const digits = { minimumFractionDigits: 2, maximumFractionDigits: 2 };
  const money = /^[A-Z]{3}$/.test(currency ?? "") ? { style: "currency", currency } : digits;
  return new Intl.NumberFormat(undefined, money).format(Number(value));
};

const asText = (value) => {
  if (Array.isArray(value)) return value.map(asText).join(", ");
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
};
export const shownValue = asText;

const isThere = (value) => value !== null && value !== undefined && asText(value).trim() !== "";

// A place for a photo, which says so where there is none.
const photo = (product, settings, eager) => {
  const remote = settings.remote_photos && product.metadata[settings.remote_photos];
  const here = settings.photos ? `photos/${encodeURIComponent(product.product_id)}` : null;
  const source = /^https?:\/\//i.test(remote || "") ? remote : here;
  const frame = h("div", { class: "photo" });
  const missing = () => frame.replaceChildren(h("span", { class: "none" }, "No photo"));
  if (!source) missing();
  else {
    const alt = `Photo of ${titleOf(product)}`;
    const image = h("img", { alt, loading: eager ? "eager" : "lazy", decoding: "async", onerror: missing });
    image.src = source;
    frame.append(image);
  }
  return frame;
};

// How much the vector draws on photo and title.
const weights = (shares) => {
  const [image, text] = [shares?.image, shares?.text];
  if (!Number.isFinite(image) || !Number.isFinite(text)) return null;
  const bar = h("div", { class: "bar", "aria-hidden": "true" }, h("i"));
  bar.firstChild.style.inlineSize = `${Math.min(100, Math.max(0, (100 * image) / (image + text || 1)))}%`;
  const label = h("p", { class: "shares" });
  label.append(h("span", { class: "of-photo" }, `photo ${image.toFixed(2)}`), " · ");
  label.append(h("span", { class: "of-title" }, `title ${text.toFixed(2)}`));
  return h("div", { class: "weights", title: "How much the product's vector draws on its photo and on its title" }, bar, label);
};

const partsOf = (hit) => {
  const parts = Object.entries(hit.parts ?? {}).filter(([, value]) => Number.isFinite(value));
  return parts.length ? parts.map(([name, value]) => `${name} ${value.toFixed(3)}`).join(" · ") : "Score: inner product of query and product";
};

export const card = (hit, settings, href, mark) => {
  const { metadata } = hit;
  const facts = settings.columns.filter((name) => name !== "title" && name !== "price" && isThere(metadata[name]));
  return h(
    "li",
    { class: mark ? `card ${mark.kind}` : "card" },
    photo(hit, settings, hit.rank <= 6),
    h("span", { class: "rank", "aria-hidden": "true" }, hit.rank),
    mark ? h("span", { class: "mark" }, mark.text) : null,
    h("h3", {}, h("a", { href, "data-go": true, "data-hit": true, title: titleOf(hit) }, h("bdi", {}, titleOf(hit)))),
    isThere(metadata.price) ? h("p", { class: "price" }, amount(metadata.price, metadata.currency)) : null,
    facts.length ? h("ul", { class: "facts" }, facts.map((name) => h("li", { title: capitalized(name) }, asText(metadata[name]).slice(0, 80)))) : null,
    h(
      "div",
      { class: "foot" },
      weights(hit.modality_weights),
      h("p", { class: "score", title: partsOf(hit) }, h("span", { class: "sr" }, "Score "), hit.score === null ? "–" : hit.score.toFixed(3)),
    ),
    h("p", { class: "more", "aria-hidden": "true" }, "More like this"),
  );
};

// One product, whole.
export const product = (found, settings) => {
  const { metadata } = found;
  const skip = new Set(["title", "description", "price", "currency", settings.remote_photos]);
  const rows = Object.entries(metadata).filter(([name, value]) => !skip.has(name) && isThere(value));
  const facts = [["id", found.product_id], ...rows].map(([name, value]) => [
    h("dt", {}, capitalized(name)),
    h("dd", {}, h("bdi", {}, asText(value).slice(0, 300))),
  ]);
  return h(
    "section",
    { class: "product", "aria-label": "Product" },
    photo(found, settings, true),
    h(
      "div",
      {},
      h("h2", {}, h("bdi", {}, titleOf(found))),
      isThere(metadata.price) ? h("p", { class: "price" }, amount(metadata.price, metadata.currency)) : null,
      isThere(metadata.description) ? h("p", { class: "description" }, String(metadata.description).slice(0, 600)) : null,
      weights(found.modality_weights),
      h("dl", {}, facts),
    ),
  );
};

export const skeleton = (cards) =>
  h("ol", { class: "grid waiting", "aria-hidden": "true" }, Array.from({ length: cards }, () => h("li", { class: "card" }, h("div", { class: "photo" }), h("p"), h("p"))));

export const message = (kind, title, text, ...actions) =>
  h("div", { class: `message ${kind}`, role: kind === "error" ? "alert" : null }, h("h2", {}, title), text ? h("p", {}, text) : null, h("div", { class: "actions" }, actions));

const MODES = { vectors: "Vectors", words: "Words", hybrid: "Both" };

// What a search ranks by, as far as the index offers a choice; `change` gets parameters of the address.
export const ranking = (offered, now, change) => {
  const select = (label, name, values, texts) => {
    const chosen = now[name] ?? "";
    const listed = values.includes(chosen) ? values : [...values, chosen];
    const options = listed.map((value, place) => h("option", { value, selected: value === chosen }, texts[place] ?? value));
    return h("label", {}, label, h("select", { onchange: (event) => change({ [name]: event.target.value || null }) }, options));
  };
  const fields = [];
  if (offered.modes.length > 1) {
    const change_mode = (mode) => change({ mode: mode === "vectors" ? null : mode, weight: mode === "hybrid" ? now.weight : null });
    const radios = offered.modes.map((mode) => h("label", {}, h("input", { type: "radio", name: "mode", value: mode, checked: (now.mode ?? "vectors") === mode, onchange: () => change_mode(mode) }), MODES[mode] ?? mode));
    fields.push(h("fieldset", { class: "modes" }, h("legend", {}, "Search by"), radios));
    if (now.mode === "hybrid") fields.push(select("Share of vectors", "weight", ["", "0.25", "0.5", "0.75"], ["by rank"]));
  }
  if (offered.groups.length) fields.push(select("One product for each", "group_by", ["", ...offered.groups], ["–"]));
  if (offered.boosts.length) {
    const boosts = ["", ...offered.boosts.flatMap((name) => [0.05, 0.2].map((weight) => JSON.stringify({ [name]: weight })))];
    fields.push(select("Boost", "boosts", boosts, ["–", ...offered.boosts.flatMap((name) => [`${name}, a little`, `${name}, much`])]));
  }
  const scores = ["", ...(offered.calibrated ? ["calibrated"] : []), "0.3", "0.5", "0.7"];
  fields.push(select("Lowest score", "min_score", scores, ["–"]));
  const set = ["mode", "weight", "group_by", "boosts", "min_score"].filter((name) => now[name]).length;
  return h("details", { class: "options" }, h("summary", {}, "Ranking", set ? h("span", { class: "number" }, set) : ""), h("div", {}, fields));
};

// A column that can be filtered by; `chosen` is what the address says of it, `change` gets what it should say.
export const facet = (one, chosen, change) => {
  const group = h("fieldset", {}, h("legend", {}, capitalized(one.column)));
  if (one.kind === "range") {
    const field = (name, operator, bound) => {
      const place = operator === ">=" ? Math.floor(bound * 100) / 100 : Math.ceil(bound * 100) / 100;
      const value = chosen.find((condition) => condition[1] === operator)?.[2] ?? "";
      const label = `${capitalized(one.column)}, ${name}`;
      const send = () => change([...group.querySelectorAll("input")].filter((input) => input.value !== "" && input.checkValidity()).map((input) => [one.column, input.dataset.operator, Number(input.value)]));
      return h("input", { type: "number", step: "any", inputmode: "decimal", placeholder: String(place), "aria-label": label, "data-operator": operator, value, onchange: send });
    };
    group.append(h("div", { class: "range" }, field("at least", ">=", one.low), h("span", { "aria-hidden": "true" }, "–"), field("at most", "<=", one.high)));
    return group;
  }
  const lists = one.kind === "lists";
  const picked = lists ? chosen.filter((condition) => condition[1] === "contains").map((condition) => condition[2]) : (chosen.find((condition) => condition[1] === "in")?.[2] ?? []);
  const listed = one.values.map(({ value }) => value);
  // What an address asks for is shown even if it is not among the most frequent.
  const values = [...picked.filter((value) => !listed.includes(value)).map((value) => ({ value, count: null })), ...one.values];
  const send = () => {
    const now = values.filter((_, place) => boxes[place].checked).map(({ value }) => value);
    change(lists ? now.map((value) => [one.column, "contains", value]) : now.length ? [[one.column, "in", now]] : []);
  };
  const boxes = values.map(({ value }) => h("input", { type: "checkbox", checked: picked.includes(value), onchange: send }));
  const rows = values.map(({ value, count: many }, place) =>
    h("label", { class: "value", hidden: place >= 8 && !picked.includes(value) }, boxes[place], h("bdi", {}, asText(value)), many === null ? null : h("span", { class: "count" }, number.format(many))),
  );
  group.append(...rows);
  const hidden = rows.filter((row) => row.hidden);
  if (hidden.length) {
    const all = h("button", { type: "button", class: "quiet", onclick: () => { hidden.forEach((row) => { row.hidden = false; }); hidden[0].querySelector("input").focus(); all.remove(); } }, `${hidden.length} more`);
    group.append(all);
  }
  if (one.distinct > one.values.length) group.append(h("p", { class: "note" }, `The ${one.values.length} most frequent of ${number.format(one.distinct)}`));
  return group;
};
