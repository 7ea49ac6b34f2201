"""The pages that a rater sees. Values in, HTML out; every text is escaped, and none names a variant."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from string import ascii_uppercase

from dream4d.evaluate.study.design import QUESTIONS, Trial


def welcome(questions: int) -> str:
    minutes = max(1, round(questions / 4))
    return _page("A study of generated videos", f"""
<main class="text">
<h1>Which video is best?</h1>
<p>You will see short videos that computer programs made from a sentence. Each time, choose the one that answers the
question best. There are <b>{questions} questions</b>; they take about {minutes} minute{"s" * (minutes > 1)}.</p>
<ul>
<li>It is your own impression that counts. A few questions have a plain answer; they check attention.</li>
<li>You may close this page and come back on this device; it goes on where you left off.</li>
<li>Videos are larger on a phone that is held sideways.</li>
<li>Stored are your choices and their times under a random code, in one cookie and on this server. Your name, your
address and your device are not.</li>
<li>Taking part is voluntary, and you may stop at any time.</li>
</ul>
<form method="post" action="/start"><button class="next">I agree, start</button></form>
</main>""")


def question(trial: Trial, number: int, of: int, key: str, videos: Sequence[str]) -> str:
    """Trial `number`, from 0, as a form. key: what proves that the form is ours. videos: their addresses by place."""
    asked = QUESTIONS[trial.question]
    choices = "".join(f"""
<label class="choice">
<video src="{escape(video)}" autoplay loop muted playsinline preload="auto" aria-hidden="true"></video>
<span><input type="radio" name="place" value="{place}" required> Video {letter}</span>
</label>""" for place, (video, letter) in enumerate(zip(videos, ascii_uppercase, strict=False)))  # fmt: skip
    return _page(f"Question {number + 1} of {of}", f"""
<header>
<span>Question <b>{number + 1}</b> of {of}</span>
<progress max="{of}" value="{number}" aria-label="Questions answered"></progress>
</header>
<main>
<form id="vote" method="post" action="/vote">
<input type="hidden" name="key" value="{escape(key)}">
<input type="hidden" name="number" value="{number}">
<fieldset>
<legend><h1>{escape(asked.text)}</h1></legend>
<p class="hint">{escape(asked.hint)}</p>
<p class="prompt">{escape(trial.case.prompt)}</p>
<div class="choices">{choices}
</div>
</fieldset>
<footer>
<button type="button" id="replay" hidden>Replay</button>
<button type="button" id="pause" hidden>Pause</button>
<button class="next">Next</button>
</footer>
</form>
</main>
<script src="/study.js" defer></script>""")


def thanks(rater: str) -> str:
    return _page("Thank you", f"""
<main class="text">
<h1>Thank you!</h1>
<p>All your answers are stored; you can close this page.</p>
<p>Should you want them deleted, name this code to whoever invited you: <code>{escape(rater)}</code></p>
<form method="post" action="/start"><button>Next person on this device</button></form>
</main>""")


def notice(text: str) -> str:
    """One line, and the way back to where the rater is."""
    return _page("Not stored", f"""
<main class="text">
<h1>{escape(text)}</h1>
<p><a href="/">Back to the study</a></p>
</main>""")


def _page(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="/study.svg">
<link rel="stylesheet" href="/study.css">
</head>
<body>{body}
</body>
</html>
"""
