"""
Comparisons: from a config to runs, records, verdicts and pages.

Short names in all files: cfg is the config of a comparison (compare.CompareConfig), c the same as a dict, as comparison.json has
it; p a Plan; r a Run before it is over, its record (a dict, see report.py) afterwards; x a Cell, one arm at one size; k the
Results of a comparison (questions.py).

    comparison.py    a comparison from its config to its tables: check it, run what is missing, write it
    state.py         where a comparison stands: which runs are over, which can be started
    live.py          what a terminal shows while a comparison runs
    timing.py        milliseconds per step of each arm
    plan.py          the arms and steps of a comparison: what they are, what they cost, whether they match
    missing.py       which runs are still to be made, by the records and the protocol
    launch.py        many processes at once, on this machine or on Slurm
    records.py       one line per run
    stats.py         intervals, tests, speed-ups, power laws
    verdicts.py      what the records say so far: rates and verdicts
    rates.py         the learning rate of an arm, from its sweep
    protocol.py      the rule by which a comparison is judged
    sigma.py         the spread over seeds, and the curves of sweeps
    outcomes.py      what the runs of each arm came to: from records to figures and verdicts
    tables.py        tables and sentences of a comparison
    costs.py         what arms with preparing steps cost, source counted and free
    figures.py       pictures of a comparison
    forest.py        effects with their intervals, a picture
    sweeps.py        loss against learning rate, arm by arm: table and picture
    page.py          the page of a comparison, one self-contained HTML file
    questions.py     RESULTS.md by question
    report.py        what --report writes
    check.py         --check: do the documents and the logs agree?
    track.py         the board, docs/track.md: what an entry may set, and the page
    match.py         the width at which one config costs as much as another one
    mup.py           is the best learning rate of a narrow model also that of a wide one?
    steps.py         time the training step of arms in turns
    bench_ablate.py  what each optimisation of the training step is worth, for bench.py
    bench_fit.py     the largest micro-batch that a GPU holds, by a count, for bench.py
    bench_nanogpt.py nanoGPT's own model and training step, for bench.py
    bench_profile.py where the time of a training step goes, and its roofline, for bench.py
    bench_race.py    the validation loss after so many seconds of training, for bench.py
    bench_same.py    losses and gradients beside those of plain float32, for bench.py
    bench_sample.py  tokens per second of sampling, for bench.py
    bench_start.py   seconds from the command to the first training step, for bench.py
    bench_targets.py the table of targets, and of costs by size and context, for bench.py
    bench_parts.py   the parts that bench_targets.py measures
    bench_layers.py  tables and timings of single layers, for bench.py
"""
