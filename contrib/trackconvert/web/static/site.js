// What pages do beyond HTML; all of it works without, by the form and by reloading.

const found = (id) => document.getElementById(id);

// -- a conversion has ended: what the server shows of it now takes the place of its bar

document.addEventListener("end", async ({ target, detail: job }) => {
  const old = target.closest("[data-live]");
  if (!old) return;
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(old.id);
    if (!fresh || ["pending", "busy"].includes(fresh.dataset.state)) return;
    old.replaceWith(fresh);
  } catch {
    return; // the bar says enough
  }
  found("told").textContent = `${old.dataset.name}: ${job.state}`;
});

// -- the form: what was chosen, whether it is too much, how far it is sent

const form = found("upload");
const size = (bytes) => (bytes < 999950 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

const complain = (text) => {
  found("problem").textContent = text;
  found("problem").hidden = !text;
};

const look = () => {
  const files = [...form.files.files];
  const list = found("chosen");
  list.replaceChildren(
    ...files.map((file) => {
      const item = document.createElement("li");
      const name = document.createElement("span");
      name.className = "name";
      name.textContent = file.name;
      const hint = document.createElement("span");
      hint.className = "hint";
      hint.textContent = size(file.size);
      item.append(name, " ", hint);
      return item;
    }),
  );
  list.hidden = !files.length;
  const { largest, most } = form.dataset;
  // the fields and the frame of the upload need a few bytes too
  const tooLarge = files.reduce((sum, file) => sum + file.size + 500, 1000) > largest;
  const tooMany = files.length > most;
  if (tooLarge || tooMany) complain(`Up to ${most} files are taken at once, ${largest / 2 ** 20} MiB in all.`);
  else complain("");
  return !tooLarge && !tooMany;
};

const busy = (is) => {
  found("sending").hidden = !is;
  form.querySelector("button").disabled = is;
  form.classList.toggle("busy", is);
};

const send = (event) => {
  event.preventDefault();
  if (!look()) return;
  const request = new XMLHttpRequest();
  const fail = (text) => {
    busy(false);
    complain(text);
  };
  request.upload.onprogress = ({ loaded, total }) => {
    found("sending").querySelector("progress").value = loaded / total;
    found("sending").querySelector(".detail").textContent = `${Math.floor((loaded / total) * 100)} %`;
  };
  request.onload = () => {
    let answer = {};
    try {
      answer = JSON.parse(request.responseText);
    } catch {
      // of a proxy in between
    }
    if (!answer.location) return fail(answer.error ?? `The server answered with ${request.status}. Please try again.`);
    const next = new URL(answer.location, location);
    form.reset();
    location.assign(next);
    // another place on this same page is not loaded by itself
    if (next.pathname === location.pathname) location.reload();
  };
  request.onerror = () => fail("The connection was lost. Please try again.");
  request.open("POST", form.action);
  request.setRequestHeader("Accept", "application/json");
  request.send(new FormData(form));
  complain("");
  busy(true);
};

if (form) {
  // as it was left, after the way back
  addEventListener("pageshow", () => {
    busy(false);
    look();
  });
  form.files.addEventListener("change", look);
  form.addEventListener("submit", send);
  for (const name of ["dragenter", "dragover"]) form.files.addEventListener(name, () => form.classList.add("over"));
  for (const name of ["dragleave", "drop"]) form.files.addEventListener(name, () => form.classList.remove("over"));
}
