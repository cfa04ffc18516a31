const ENDED = ["done", "failed", "cancelled", "unknown"];
const page = globalThis.document;

// Tells how a job stands: onProgress(job) for each answer, at last onDone(job) or onError(job), of no such job with
// {state: "unknown"}; onLost(failures) while nobody answers. Returns a function that stops it.
export function watch(url, { onProgress, onDone, onError, onLost } = {}) {
  let timer, wake, request, failures = 0, gone = 3;
  const end = new AbortController(), { signal } = end;
  const stop = () => {
    clearTimeout(timer);
    request?.abort();
    end.abort();
  };
  // hidden tabs do not ask; shown again, they ask at once
  const now = () => page?.hidden || wake();
  const look = async (pause) => {
    await new Promise((done) => { wake = done; timer = setTimeout(now, pause); });
    clearTimeout(timer);
    request = new AbortController();
    // who hangs counts twice, to be told of at once, and then gets longer
    const late = setTimeout(() => request.abort(failures++), /wait=/.test(url) ? 40000 : failures ? 15000 : 5000);
    let job;
    try {
      const answer = await fetch(url, { signal: request.signal });
      if (answer.ok) job = await answer.json();
      // one that was there may be missing while servers restart
      if (!job?.state) job = answer.status < 411 && ++gone > 3 && { state: "unknown" };
    } catch {}
    clearTimeout(late);
    if (signal.aborted) return;
    if (!job) {
      // less and less often, and not all browsers at once
      look(Math.min(500 * 2 ** failures, 15000) * (0.75 + Math.random() / 2));
      return onLost?.(++failures);
    }
    failures = gone = 0;
    const ended = ENDED.includes(job.state);
    if (ended) stop();
    else look(job.poll_after_ms ?? 1000);
    if (job.state !== "unknown") onProgress?.(job);
    if (ended) (job.state === "done" ? onDone : onError)?.(job);
  };
  page?.addEventListener("visibilitychange", now, { signal });
  globalThis.addEventListener?.("online", now, { signal });
  look(0);
  return stop;
}

// <forkrunner-progress src="/jobs/ID" data-left="{} to go" …> sets its attribute state, sends "change" and
// "end", and has in it progress, [role=status], .detail, at the end a.result. Other words: data-STATE, -ahead, -left, …
export class Progress extends (globalThis.HTMLElement ?? class {}) {
  static observedAttributes = ["src", "label"];

  connectedCallback() {
    // a copy has them already
    const part = (name, key, value) => {
      const made = this.querySelector(`${name}[${key}=${value}]`) ?? page.createElement(name);
      made.setAttribute(key, value);
      this.append(made, " ");
      return made;
    };
    this.bar = part("progress", "role", "progressbar");
    this.status = part("span", "role", "status");
    this.detail = part("span", "class", "detail");
    this.attributeChangedCallback("src");
  }

  disconnectedCallback() {
    this.stop?.();
  }

  attributeChangedCallback(name) {
    if (!this.bar) return;
    const aria = { label: this.getAttribute("label") ?? "Progress", valuemin: 0, valuemax: 100 };
    for (const key in aria) this.bar.setAttribute("aria-" + key, aria[key]);
    if (name !== "src") return;
    this.stop?.();
    this.querySelector(".result")?.remove();
    const src = this.getAttribute(name);
    const end = (job) => {
      if (job.state === "unknown") this.show({ ...job, error: "There is no such job" });
      this.tell("end", job);
    };
    const onLost = (failures) => failures > 1 && this.say("lost", [], "Connection lost, trying again");
    if (src) this.stop = watch(src, { onProgress: (job) => this.show(job), onDone: end, onError: end, onLost });
  }

  word(name, value, text = `${value} ${name}`) {
    return this.dataset[name]?.replace("{}", value) ?? text;
  }

  say(state, parts, words = state[0].toUpperCase() + state.slice(1), own) {
    this.setAttribute("state", state);
    const text = own ?? this.word(state, "", words), [, news] = parts;
    // the same words again would be read again
    if (this.status.textContent !== text) this.status.textContent = text;
    // read for news, not for numbers, and each five seconds at most
    const aloud = news && news !== this.news && !(Date.now() < this.quiet);
    if (aloud) [this.news, this.quiet] = [news, Date.now() + 5000];
    this.detail.ariaLive = aloud ? "polite" : "off";
    this.detail.textContent = parts.filter(Boolean).join(" · ");
  }

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true }));
  }

  show(job) {
    let { state, fraction, position: ahead, due_at: due, eta_seconds: s, error, result_url: href } = job;
    // where it was when it failed
    if (ENDED.includes(state)) fraction ??= Math.max(this.bar.position, 0);
    const percent = Math.floor(fraction * 100), put = fraction == null ? "removeAttribute" : "setAttribute";
    this.bar[put]("value", fraction);
    this.bar[put]("aria-valuenow", percent);
    if (state === "busy") {
      const time = s < 90 ? `${Math.ceil(s)} s` : s < 5400 ? `${(s / 60).toFixed()} min` : `${(s / 3600).toFixed()} h`;
      this.say("running", [fraction != null && `${percent} %`, job.message, s != null && this.word("left", time)]);
    } else if (state === "pending") {
      const at = due && new Date(due).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
      let place = at ? this.word("until", at, `until ${at}`) : this.word("next", "", "next");
      if (ahead) place = this.word("ahead", ahead);
      this.say("queued", ["", place], "Waiting");
    } else this.say(state, [], error, job.user_error && error);
    if (href) {
      const textContent = this.word("result", "", "Result");
      const link = Object.assign(page.createElement("a"), { className: "result", href, textContent });
      if (/^https?:/.test(link.protocol)) this.append(link);
    }
    this.tell("change", job);
  }
}

try {
  customElements.define("forkrunner-progress", Progress);
} catch {} // there is one, or no browser
