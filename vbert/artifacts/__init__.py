"""Cached, resumable steps: the model.

- A **stage** is a function whose signature declares a kind of work: `regions(build, images, detector, settings)`.
- Calling it runs nothing. It gives the **artifact**-to-be, which knows its **step**: the stage and the arguments.
- The **fingerprint** is the sha256 of the step as canonical JSON: all parameters but `build`; inputs by their own.
- `build` is where and how. It is never hashed, and tests prove that it changes no bits.
- A **store** keeps finished artifacts by fingerprint, each whole or absent: files first, the manifest last, the first
  one wins. A manifest is existence; nothing that is listed is.
- The **content** is the digest of an artifact's names and bytes. A step whose inputs have known contents and that was
  made before is adopted: an alias in place of work.
- A **unit** is a part of an artifact, committed whole in the same way. A resumed build makes the missing ones.
- A **checkpoint** lies in an attempt's own scratch directory; the next attempt goes on from it.
- A **plan** says what is there, missing and needed, without building; an **engine** builds what a plan lacks, each step
  under its lock. The lock saves work, truth never rests on it.
- Functions that compute run in **workers**: child processes with a **job**, replaced when they die.
- What reads is suspicious: sizes at each look, sha256 at the first read of a run. Damaged things are moved away, named
  and made again.
- Arrows: `upkeep` → `making` → `steps` → `store`.

`steps` says WHAT, `store` WHERE, `making` HOW, `upkeep` is for AFTERWARDS.
"""
