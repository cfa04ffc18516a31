// How a forkrunner job stands, live: <forkrunner-progress src="/jobs/ID"> shows it, watch("/jobs/ID", {…}) calls back.

const ENDED = ["done", "failed", "cancelled"];
const page = globalThis.document;

// Calls onProgress(job) for each answer, at last onDone(job) or onError(job): failed, cancelled, or {state: "unknown"} if there
// is no such job; onLost(failures) while nobody answers. Returns a function that stops it.
export function watch(url, { onProgress, onDone, onError, onLost } = {}) {
  let timer, request, over, seen, gone = 0, failures = 0;

  const stop = () => {
    over = true;
    clearTimeout(timer);
    request?.abort();
    page?.removeEventListener("visibilitychange", now);
    globalThis.removeEventListener?.("online", now);
  };
  // hidden tabs do not ask; shown again, they ask at once
  const now = () => {
    clearTimeout(timer);
    if (!over && !request && !page?.hidden) look();
  };
  const ask = async () => {
    request = new AbortController();
    const late = setTimeout(() => request?.abort(), 15000);
    try {
      const answer = await fetch(url, { cache: "no-store", signal: request.signal });
      if (answer.ok) return await answer.json();
      // one that was there may be missing for a moment while servers restart
      const final = [400, 401, 403, 404, 410].includes(answer.status) && (!seen || ++gone > 3);
      return final ? { state: "unknown" } : null;
    } catch {
      return null;
    } finally {
      clearTimeout(late);
      request = null;
    }
  };
  const look = async () => {
    const job = await ask();
    if (over) return;
    // less and less often, and not all browsers at the same moment
    let pause = Math.min(500 * 2 ** failures, 15000) * (0.75 + Math.random() / 2);
    if (job) {
      pause = job.poll_after_ms ?? 1000;
      failures = gone = 0;
      seen = true;
    } else failures++;
    const unknown = job?.state === "unknown";
    const ended = unknown || ENDED.includes(job?.state);
    if (ended) stop();
    else if (!page?.hidden) timer = setTimeout(now, pause);
    if (!job) return onLost?.(failures);
    if (!unknown) onProgress?.(job);
    if (ended) (job.state === "done" ? onDone : onError)?.(job);
  };

  page?.addEventListener("visibilitychange", now);
  globalThis.addEventListener?.("online", now);
  now();
  return stop;
}

const left = (s) =>
  `${s < 90 ? `${Math.ceil(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`} left`;

// Attributes: src; label, what the bar is of; data-queued, data-running and so on for other words. For CSS and scripts: the
// attribute state (queued, running, done, failed, cancelled, unknown, lost), the events "change" and "end" with the job as
// detail, and within, without a shadow: <progress>, <span role=status>, <span class=detail>, at the end <a>.
export class Progress extends (globalThis.HTMLElement ?? class {}) {
  static observedAttributes = ["src"];

  connectedCallback() {
    if (!this.bar) {
      const add = (name, attributes) => {
        const made = page.createElement(name);
        for (const key in attributes) made.setAttribute(key, attributes[key]);
        this.append(made, " ");
        return made;
      };
      const label = this.getAttribute("label") ?? "Progress";
      const aria = { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": label };
      this.bar = add("progress", { max: 1, ...aria });
      // read aloud when it changes; the numbers beside it are not
      this.status = add("span", { role: "status" });
      this.detail = add("span", { class: "detail" });
    }
    this.start();
  }

  disconnectedCallback() {
    this.stop?.();
  }

  attributeChangedCallback() {
    if (this.bar) this.start();
  }

  start() {
    this.stop?.();
    this.link?.remove();
    const src = this.getAttribute("src");
    if (!src) return;
    const end = (job) => {
      this.bar.value ||= 0;
      if (job.state === "unknown") this.say("unknown", "There is no such job");
      this.tell("end", job);
    };
    this.stop = watch(src, {
      onProgress: (job) => this.show(job),
      onDone: end,
      onError: end,
      onLost: (failures) => failures > 1 && this.say("lost", "Connection lost, trying again"),
    });
  }

  say(state, words, detail = "", own) {
    this.setAttribute("state", state);
    const text = own ?? this.dataset[state] ?? words;
    // the same words again would be read again
    if (this.status.textContent !== text) this.status.textContent = text;
    this.detail.textContent = detail;
  }

  tell(name, job) {
    this.dispatchEvent(new CustomEvent(name, { detail: job, bubbles: true }));
  }

  show(job) {
    const { bar } = this;
    const { state, fraction, position: ahead } = job;
    const percent = fraction != null && Math.floor(fraction * 100);
    if (fraction != null) {
      bar.value = fraction;
      bar.setAttribute("aria-valuenow", percent);
    } else for (const name of ["value", "aria-valuenow"]) bar.removeAttribute(name);
    if (state === "busy") {
      const parts = [fraction != null && `${percent} %`, job.message, job.eta_seconds != null && left(job.eta_seconds)];
      this.say("running", "Running", parts.filter(Boolean).join(" · "));
    } else if (state === "pending") {
      this.say("queued", "Waiting", ahead ? `${ahead} ahead` : "next");
    } else this.say(state, job.error ?? state[0].toUpperCase() + state.slice(1), "", job.user_error ? job.error : null);
    if (job.result_url) {
      this.link = page.createElement("a");
      this.link.href = job.result_url;
      this.link.textContent = this.dataset.result ?? "Result";
      if (/^https?:/.test(this.link.protocol)) this.append(this.link);
    }
    this.tell("change", job);
  }
}

const elements = globalThis.customElements;
if (elements && !elements.get("forkrunner-progress")) elements.define("forkrunner-progress", Progress);
