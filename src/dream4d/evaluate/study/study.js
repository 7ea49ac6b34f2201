// Plays the videos in step. Without it each loops on its own, and the form works all the same.
"use strict";

const form = document.getElementById("vote");
const replay = document.getElementById("replay");
const pause = document.getElementById("pause");
const videos = [...form.querySelectorAll("video")];

function setPaused(paused) {
  pause.textContent = paused ? "Play" : "Pause";
  for (const video of videos) {
    if (paused) video.pause();
    else if (!video.ended) video.play().catch((error) => error.name === "NotAllowedError" && setPaused(true));
  }
}

function restart() {
  for (const video of videos) video.currentTime = 0;
  setPaused(false);
}

function arrange() {
  const wide = videos.every((video) => video.videoWidth > 2 * video.videoHeight);
  form.querySelector(".choices").classList.toggle("wide", wide);
}

function loaded(video) {
  return new Promise((resolve) => {
    if (video.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA || video.error) resolve();
    for (const event of ["canplay", "error"]) video.addEventListener(event, resolve, { once: true });
  });
}

for (const video of videos) {
  video.loop = false;
  video.addEventListener("loadedmetadata", arrange);
  video.addEventListener("ended", () => videos.every((each) => each.ended || each.error) && restart());
}
arrange();
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
Promise.all(videos.map(loaded)).then(() => (calm ? setPaused(true) : restart()));
replay.hidden = pause.hidden = false;

replay.addEventListener("click", restart);
pause.addEventListener("click", () => setPaused(pause.textContent === "Pause"));
form.addEventListener("submit", () => {
  form.querySelector("button.next").disabled = true;
});
window.addEventListener("pageshow", (event) => event.persisted && location.reload()); // back: show the current question
