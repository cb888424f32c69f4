"""
Put a model to the usual zero-shot tests.

    python evaluate.py --checkpoint=out/d12/best.pt --tasks=wikitext2,wikitext103,lambada,hellaswag,val
    python evaluate.py --checkpoint=/path/to/gpt2 --tasks=lambada --limit=500 --device=cpu

The checkpoint is one of ours (layers made of factors are collapsed first), one of nanoGPT's, or the folder of any
causal language model that Hugging Face's transformers loads. It is read with its own tokenizer. The command prints a
table, and writes a JSON file with the same figures, the commit and the edition of each file.

    wikitext2    perplexity of the raw test text of WikiText-2
    wikitext103  perplexity of the test text of WikiText-103, the edition with <unk>
                 ppl_token = exp(nats / tokens), ppl_word = exp(nats / words), words as split at white space;
                 bits_per_byte = nats / ln 2 / UTF-8 bytes. The text goes through the model as it is, without
                 de-tokeniser, <|endoftext|> (or what the tokenizer has in its place) before it
    lambada      the last word of 5,153 passages, given all words before it. acc: the greedy tokens are all right;
                 ppl = exp(mean over the passages of the word's nats), so per word and not per token
    hellaswag    which of four endings follows? acc: the likeliest; acc_norm: the likeliest per character
    val          the validation split of the checkpoint's data set (or --dataset): nats_per_token, bits_per_byte.
                 Nothing is put before it, and windows do not overlap: train.py's loss, but over the whole split.
                 The separators between documents are predicted, too, but are no bytes of the text

Texts are read in windows of at most `window` tokens, which move by `stride` tokens. Each token counts once, in the
first window that holds it. So the first window counts all of its tokens, every later one its last `stride`, and the
last one the rest. The very first token of a text counts if something was put before it. Losses are in nats over the
model's whole vocabulary, padded ids included, as in training. batch_size changes the figures only by rounding. On a GPU
the default is bfloat16, which rounds logits to about three digits; use --dtype=float32 where that matters.
"""

import bz2
import functools
import hashlib
import itertools
import json
import math
import os
import shlex
import sys
import time
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import configurator  # noqa: F401  first: it answers Ctrl-C while torch is loaded

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from configurator import ROOT, UserError, key, load, nearest, open_file, printable, root_path, run
from files import check_place, launched, read_json, write, write_json
from logger import commit, dirty, relative
from surgery.language_model import LM, open_model
from tokens import loader, tokenizer
from tokens.download import given, retrieve

LONGEST = 2**28  # bytes of a text; a small bz2 file can hold petabytes
LOGITS_BYTES = 2**30  # of one batch, in float32: at GPT-2's vocabulary 5 windows of 1024 tokens

# sha256: of the file. Where url is an archive: archive_sha256 is its checksum, and member the name of the file inside
SOURCES = {
    'wikitext2': dict(
        file='wikitext2/wiki.test.raw',
        sha256='173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08',
        url='https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip',
        archive_sha256='ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11',
        member='wikitext-2-raw/wiki.test.raw',
    ),
    'wikitext103': dict(
        file='wikitext103/wiki.test.tokens',
        sha256='56db52eb157b1ab5c89646eef70510c1eca6e12a3bfdb99f0d6b05b4eacb75b9',
        url='https://wikitext.smerity.com/wikitext-103-v1.zip',
        archive_sha256='242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590',
        member='wikitext-103/wiki.test.tokens',
    ),
    'lambada': dict(
        file='lambada/lambada_test.jsonl',
        sha256='4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226',
        url='https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl',
    ),
    'hellaswag': dict(
        file='hellaswag/hellaswag_val_full.txt.bz2',
        sha256='50b637899e4263c2bc456c2dc726c95d2c8cd8e2a552ea5bd7719ce3cb03fe5b',
        url='https://raw.githubusercontent.com/klosax/hellaswag_text_data/main/hellaswag_val_full.txt.bz2',
    ),
}


@dataclass
class EvalConfig:
    checkpoint: str = key('', 'checkpoint file, the out_dir of a run, or a Hugging Face folder')
    tasks: str = key('val', 'any of wikitext2, wikitext103, lambada, hellaswag, val, joined by commas')
    limit: int = key(0, 'examples, or windows of a text, per task: the first ones; 0: all', low=0)
    window: int = key(0, "longest context in tokens; 0: the model's block_size", low=0)
    stride: int = key(0, 'tokens from window to window; 0: half the window, for val the whole', low=0)
    batch_size: int = key(32, 'rows at once, fewer where their logits would exceed 1 GB', low=1)
    device: str = key('auto', 'cuda, cuda:1, cpu, mps; auto: the best there is')
    dtype: str = key('auto', 'precision of matrix products', choices=('auto', 'float32', 'bfloat16', 'float16'))
    out: str = key('', "JSON to write, or to add tasks to; empty: eval.json in the checkpoint's folder")
    dataset: str = key('', "data set for val; empty: the checkpoint's own")

    def names(self) -> list[str]:
        """The tasks, each once."""
        return list(dict.fromkeys(t.strip() for t in self.tasks.split(',') if t.strip()))

    def problems(self) -> list[str]:
        """What is wrong with the keys, one line each; [] if nothing."""
        found = [] if self.checkpoint else ['checkpoint: must be given, --checkpoint=PATH']
        for name in self.names():
            if name not in TASKS:
                found.append(f"tasks: there is no '{name}', only {', '.join(TASKS)}{nearest(name, TASKS)}")
        if not self.names():
            found.append(f'tasks: name at least one of {", ".join(TASKS)}')
        if self.dataset and 'val' not in self.names():
            found.append(f'dataset = {self.dataset}: is for the task val; add it to tasks, or leave it out')
        if self.window and self.stride > self.window:
            found.append(f'stride = {self.stride}: is above window = {self.window}, tokens would be left out')
        return found


# -----------------------------------------------------------------------------
# scoring


def pieces(context: list, target: list, window: int):
    """What one forward each can score: (context, target) with at most window inputs, cut from the left. Only a target
    that is longer than a window itself comes in several pieces, of half a window, each after what precedes it."""
    step = window if len(target) <= window else max(1, window // 2)
    ids = context + target
    for i in range(len(context), len(ids), step):
        end = min(i + step, len(ids))
        yield ids[max(0, end - 1 - window) : i], ids[i:end]


def batches(lengths: list, batch_size: int, vocab_size: int):
    """Indices of rows that go through the model together: the longest first (what does not fit into memory shows at
    once), similar lengths together, their float32 logits within LOGITS_BYTES."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        n = min(batch_size, max(1, LOGITS_BYTES // (4 * vocab_size * lengths[order[0]])))
        yield order[:n]
        order = order[n:]


def logprobs(lm: LM, rows: list, batch_size: int, title='') -> tuple[torch.Tensor, torch.Tensor]:
    """rows: (context ids, target ids), no context empty. -> (nats (N,) float64: -ln p(target | context) summed over
    the target's tokens; greedy (N,) bool: each of them has the highest logit).

    Rows are padded on the right with token 0: in a causal model no position sees those after it."""
    cut = [(row, *piece) for row, (context, target) in enumerate(rows) for piece in pieces(context, target, lm.window)]
    nats = torch.zeros(len(rows), dtype=torch.float64)
    misses = torch.zeros(len(rows), dtype=torch.int64)
    lengths = [len(c) + len(t) - 1 for _, c, t in cut]
    bar = tqdm(total=len(cut), desc=title, leave=False, file=sys.stderr, disable=not sys.stderr.isatty())
    for chosen in batches(lengths, batch_size, lm.vocab_size):
        idx = torch.zeros(len(chosen), lengths[chosen[0]], dtype=torch.int64)
        at, position, wanted = [], [], []
        for b, i in enumerate(chosen):
            _, context, target = cut[i]
            idx[b, : lengths[i]] = torch.tensor((context + target)[:-1])
            at += [b] * len(target)
            position += range(len(context) - 1, lengths[i])
            wanted += target
        at, wanted = torch.tensor(at), torch.tensor(wanted)
        logits = lm.logits(idx.to(lm.device))
        logits = logits[at.to(lm.device), torch.tensor(position, device=lm.device)].float()  # (targets, V)
        loss = F.cross_entropy(logits, wanted.to(lm.device), reduction='none').cpu().double()
        wrong = (logits.argmax(-1).cpu() != wanted).long()
        row = torch.tensor([cut[i][0] for i in chosen])[at]
        nats.index_add_(0, row, loss)
        misses.index_add_(0, row, wrong)
        bar.update(len(chosen))
    bar.close()
    return nats, misses == 0


def windows(ids: list, window: int, stride: int, limit: int = 0) -> list:
    """A running text as rows: ids[1:], each token once. The first row has `window` targets, later ones `stride`, the
    last what is left; before its targets a row has as much context as fits into its window."""
    rows, done = [], 1
    while done < len(ids) and not (limit and len(rows) == limit):
        end = min(done + (stride if rows else window), len(ids))
        start = len(rows) * stride
        rows.append((ids[start:done], ids[done:end]))
        done = end
    return rows


def encode_pair(lm: LM, context: str, ending: str) -> tuple[list, list]:
    """Both as tokens of their concatenation, so that the ending is tokenised as it would be in a text."""
    n, whole = len(lm.encode(context)), lm.encode(context + ending)
    n = min(n, len(whole) - 1)
    context, target = lm.prefix + whole[:n], whole[n:]
    return (context, target) if context else (context + target[:1], target[1:])


# -----------------------------------------------------------------------------
# where the texts come from


def read_source(task: str) -> tuple[bytes, dict]:
    """(content, {file, sha256}) of a task's file: from NANOMORPH_DATA, or data/.download, or else from its address
    into data/.download. A file of the user's own that is another edition is used, and said to be one."""
    s = SOURCES[task]
    mine = given(s['file'])
    kept = ROOT / 'data' / '.download' / s['file']
    path = mine if mine and mine.exists() else kept
    if not path.exists():
        try:
            content = retrieve(s['url'], 'sha256:' + s.get('archive_sha256', s['sha256']))
            if 'member' in s:
                content = zipfile.ZipFile(BytesIO(content)).read(s['member'])
        except Exception as e:
            raise UserError(
                f'{task}: {s["file"]} is missing and cannot be had from {s["url"]} ({type(e).__name__}); place it at '
                f'{mine or kept}' + ('' if mine else ', or name the folder that holds it in NANOMORPH_DATA')
            ) from None
        write(kept, content)
    try:
        with open_file(path) as f:
            content = f.read()
    except OSError as e:
        raise UserError(f'{task}: {path} cannot be read ({e.strerror}); restore it from a copy') from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != s['sha256']:
        print(f'NOTE: {path} is another edition of {s["file"]}; do not compare its figures with published ones')
    try:
        content = bz2.open(BytesIO(content)).read(LONGEST + 1) if path.suffix == '.bz2' else content
    except (OSError, ValueError, EOFError):
        raise UserError(f'{task}: {path} is truncated or no bz2 file; delete it or restore it from a copy') from None
    if len(content) > LONGEST:
        raise UserError(f'{task}: {path} is longer than {LONGEST:,} bytes; restore it from a copy')
    return content, dict(file=s['file'], sha256=digest, known_edition=digest == s['sha256'])


def as_text(content: bytes, task: str) -> str:
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError:
        raise UserError(f'{task}: {SOURCES[task]["file"]} is not UTF-8 text; restore it') from None


def check_characters(lm: LM, task: str, *texts: str) -> dict:
    """{unknown_share: of the tokens, where the tokenizer has one for what it cannot write}. Raises UserError if a
    character model does not know all characters, or more than a hundredth is unknown: it would be another text."""
    try:
        lm.encode(''.join(sorted(set().union(*texts))))
        encoded = [(text, lm.encode(text)) for text in texts]
    except UserError as e:
        raise UserError(f'{task}: {e}') from None
    unknown, tokens = sum(lm.unknown(*pair) for pair in encoded), sum(len(ids) for _, ids in encoded)
    share = unknown / max(1, tokens)
    if share > 0.01:
        raise UserError(
            f'{task}: the tokenizer cannot write this text: {share:.1%} of its {tokens:,} tokens are unknown'
        )
    if unknown:
        print(f'NOTE: {task}: {unknown:,} of {tokens:,} tokens are unknown to the tokenizer, and scored as if written')
    return dict(unknown_share=share)


# -----------------------------------------------------------------------------
# the tasks: (lm, cfg) -> (rows, counts, figures), figures(nats, greedy) a dict of what is measured. All of a run's tasks
# are prepared before the first is scored: a mistake shows before the time is spent.


def running_text(lm: LM, cfg: EvalConfig, ids: list, stride: int, whole: bytes | None = None, separator: list = ()):
    """Rows and counts of a text. whole: the original bytes, where every one of them counts (else: decode what does).
    separator: the id that stands between documents, if any; it is predicted, but has no bytes."""
    rows = windows(ids, lm.window, stride, cfg.limit)
    if not rows:
        raise UserError(f'a text of {len(ids)} tokens has none to predict')
    tokens = sum(len(target) for _, target in rows)
    if whole is None or tokens < len(ids) - 1:
        whole = lm.decode([i for i in ids[1 : 1 + tokens] if i not in separator])
    return rows, dict(
        window=lm.window,
        stride=stride,
        tokens=tokens,
        words=len(whole.decode(errors='replace').split()),
        bytes=len(whole),
        examples=len(rows),
    )


def wikitext(task: str, lm: LM, cfg: EvalConfig):
    """Perplexity of WikiText (Merity et al. 2016, arXiv:1609.07843), zero-shot as in Radford et al. 2019, but without
    their de-tokenisers, whose code is not published."""
    content, source = read_source(task)
    text = as_text(content, task)
    known = check_characters(lm, task, text)
    ids = lm.first + lm.encode(text)
    rows, counts = running_text(lm, cfg, ids, cfg.stride or max(1, lm.window // 2), content if lm.first else None)

    def figures(nats, greedy):
        total = nats.sum().item()
        return dict(
            ppl_token=exp(total / counts['tokens']),
            ppl_word=exp(total / max(1, counts['words'])),
            bits_per_byte=total / math.log(2) / counts['bytes'],
        )

    return rows, counts | source | known | dict(put_first=lm.decode(lm.first).decode() if lm.first else ''), figures


def lambada(lm: LM, cfg: EvalConfig):
    """The last word of passages whose last word needs all of them (Paperno et al. 2016, arXiv:1606.06031), in the
    edition that OpenAI tested GPT-2 with. The last word is what follows the last space, as in EleutherAI's harness."""
    content, source = read_source('lambada')
    try:
        texts = [json.loads(line)['text'] + '' for line in as_text(content, 'lambada').splitlines() if line.strip()]
        pairs = [text.rsplit(' ', 1) for text in texts][: cfg.limit or None]
        pairs = [(context, ' ' + word) for context, word in pairs]
        if not pairs or not all(context.strip() and word.strip() for context, word in pairs):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f'lambada: {source["file"]} is not lines of {{"text": passage of several words}}') from None
    known = check_characters(lm, 'lambada', *map(''.join, pairs))
    rows = [encode_pair(lm, *pair) for pair in pairs]

    def figures(nats, greedy):
        return dict(ppl=exp(nats.mean().item()), acc=greedy.double().mean().item())

    return rows, row_counts(lm, rows, [ending for _, ending in pairs], len(rows)) | source | known, figures


def hellaswag(lm: LM, cfg: EvalConfig):
    """Four endings of a described scene (Zellers et al. 2019, arXiv:1905.07830), validation split, zero-shot:
    `activity: context`, one space, the ending. acc_norm divides an ending's log-probability by its characters, as
    EleutherAI's harness does."""
    content, source = read_source('hellaswag')
    lines = as_text(content, 'hellaswag').split('\n')
    lines = lines[:-1] if lines[-1] == '' else lines
    tasks = [lines[i : i + 6] for i in range(0, len(lines), 6)]
    if not tasks or any(len(t) < 6 or t[1] not in ('0', '1', '2', '3') or not all(t[2:]) for t in tasks):
        raise UserError(f'hellaswag: {source["file"]} is not six lines per task (context, label 0 to 3, four endings)')
    tasks = tasks[: cfg.limit or None]
    known = check_characters(lm, 'hellaswag', ' ', *(''.join(t[:1] + t[2:]) for t in tasks))
    rows = [encode_pair(lm, t[0], ' ' + ending) for t in tasks for ending in t[2:]]
    labels = torch.tensor([int(t[1]) for t in tasks])
    endings = [ending for t in tasks for ending in t[2:]]
    characters = torch.tensor([len(e) for e in endings]).view(-1, 4)

    def figures(nats, greedy):
        nats = nats.view(-1, 4)
        return dict(
            acc=(nats.argmin(1) == labels).double().mean().item(),
            acc_norm=((nats / characters).argmin(1) == labels).double().mean().item(),
        )

    return rows, row_counts(lm, rows, endings, len(tasks)) | source | known, figures


def val(lm: LM, cfg: EvalConfig):
    """The validation split of a data set. A model with another tokenizer than the data set's reads the same text in its
    own tokens, its own separator between documents: then nats per token do not compare, bits per byte do."""
    dataset = cfg.dataset or lm.dataset()
    if not dataset:
        raise UserError('val: the model does not name its data set; add --dataset=shakespeare_char or what it is')
    loader.prepare(dataset, may_run=bool(cfg.dataset))
    record = tokenizer.of_data(dataset)
    if not record:
        raise UserError(f'val: the meta.json of {dataset} does not say what its tokens are; {loader.mend(dataset)}')
    data = tokenizer.build(record, loader.data_dir(dataset), [loader.data_dir(dataset)])
    tokens = loader.open_tokens(dataset, 'val', 1, data.vocabulary)
    ids = tokens.windows(np.array([0]), len(tokens))[0].tolist()
    same, known = bool(lm.record) and tokenizer.compare(lm.record, record) == 'same', {}
    separator = data.first if same else lm.first
    if not same:
        ends = [i for i, token in enumerate(ids) if token in data.first]
        texts = [
            data.decode(ids[a:b]).decode(errors='replace') for a, b in zip([0, *(i + 1 for i in ends)], [*ends, None])
        ]
        known = check_characters(lm, 'val', *texts)
        ids = [i for n, text in enumerate(texts) for i in (separator if n else []) + lm.encode(text)]
    rows, counts = running_text(lm, cfg, ids, cfg.stride or lm.window, separator=separator)

    def figures(nats, greedy):
        total = nats.sum().item()
        return dict(
            nats_per_token=total / counts['tokens'], bits_per_byte=total / math.log(2) / max(1, counts['bytes'])
        )

    return rows, counts | dict(dataset=dataset, own_tokens=same) | known, figures


def row_counts(lm: LM, rows: list, endings: list, examples: int) -> dict:
    return dict(
        window=lm.window,
        stride=None,
        tokens=sum(len(target) for _, target in rows),
        words=sum(len(e.split()) for e in endings),
        examples=examples,
    )


def exp(x: float) -> float:
    """e^x, infinite where an untrained model exceeds what a float holds."""
    return math.inf if x > 700 else math.exp(x)


TASKS = dict(
    wikitext2=functools.partial(wikitext, 'wikitext2'),
    wikitext103=functools.partial(wikitext, 'wikitext103'),
    lambada=lambada,
    hellaswag=hellaswag,
    val=val,
)
RUN = ('tasks', 'batch_size', 'commit', 'dirty', 'torch', 'started', 'command')  # facts of a call, not of the model

# -----------------------------------------------------------------------------
# the command


COUNTS = ('window', 'stride', 'tokens', 'words', 'examples')
HEAD = f'{"task":12} {"figure":15}{"value":>12}' + ''.join(f'{h:>10}' for h in (*COUNTS, 'seconds'))


def table(task: str, result: dict) -> str:
    """The lines below HEAD of a task: one for each figure, the counts beside the first."""
    counts = [f'{result[h]:,}' if result[h] is not None else '-' for h in COUNTS] + [f'{result["seconds"]:.1f}']
    lines = [f'{task if i == 0 else "":12} {k:15}{v:12.4f}' for i, (k, v) in enumerate(result['figures'].items())]
    return '\n'.join([lines[0] + ''.join(f'{c:>10}' for c in counts), *lines[1:]])


def evaluate(cfg: EvalConfig) -> dict:
    """Prints the table, writes the JSON and returns its content."""
    lm = open_model(cfg)
    path = Path(lm.facts['checkpoint'])
    out = root_path(cfg.out) if cfg.out else (path if path.is_dir() else path.parent) / 'eval.json'
    check_place(out)
    if out.exists() and out.suffix != '.json':  # another report is moved aside, but this is none
        raise UserError(
            f'out = {out}: is there and no report; choose another --out, such as {out.with_suffix(".json").name}'
        )
    prepared = {name: TASKS[name](lm, cfg) for name in cfg.names()}
    report = lm.facts | dict(
        limit=cfg.limit,
        batch_size=cfg.batch_size,
        commit=commit(),
        dirty=dirty(),
        torch=torch.__version__,
        started=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        command=shlex.join(['python', *sys.argv]),
        tasks={},
    )
    f = lm.facts
    collapsed = f' ({f["params_collapsed"]:,} collapsed)' if f['params_collapsed'] != f['params'] else ''
    print(
        f'{printable(f["checkpoint"])}: {f["kind"]}, {f["params"]:,} parameters{collapsed}, tokenizer {f["tokenizer"]}'
    )
    limit = f', limit {cfg.limit}' if cfg.limit else ''
    print(f'{f["device"]}, {f["dtype"]}, commit {report["commit"][:10]}{limit}')
    print(HEAD, flush=True)
    for name, (rows, counts, figures) in prepared.items():
        t0 = time.perf_counter()
        nats, greedy = logprobs(lm, rows, cfg.batch_size, name)
        if nats.isnan().any():  # an accuracy would hide it
            raise UserError(f'{name}: the model computes NaN for {int(nats.isnan().sum())} of {len(rows)} rows')
        seconds = round(time.perf_counter() - t0, 3)
        report['tasks'][name] = counts | dict(seconds=seconds, figures=figures(nats, greedy))
        print(table(name, report['tasks'][name]), flush=True)
        report = relative(report)
        if name == [*prepared][-1] or not launched(out.parent):  # to compare.py a file says that all tasks are done
            write_json(out, add_to(out, report))  # an interrupted call keeps the tasks that it has measured
    print(f'wrote {out}')
    return report


def add_to(out: Path, report: dict) -> dict:
    """The report, with the tasks that were measured before of the same model in the same way. A report on another model,
    or with another limit, is moved aside first: nothing is lost."""
    try:
        old = read_json(out, {'tasks': {str: dict}, str: object})
        if all(old[k] == v for k, v in report.items() if k not in RUN):
            when = {k: old[k] for k in ('commit', 'started')}
            return report | dict(tasks={k: when | task for k, task in old['tasks'].items()} | report['tasks'])
    except (UserError, LookupError):  # none, or no report
        pass
    if out.exists():
        n = next(n for n in itertools.count(1) if not out.with_name(f'{out.stem}.{n}{out.suffix}').exists())
        aside = out.with_name(f'{out.stem}.{n}{out.suffix}')
        os.replace(out, aside)
        print(f'{out.name} there is of another model, device or limit: it is called {aside.name} now')
    return report


def main():
    evaluate(load(EvalConfig, sys.argv[1:]))


if __name__ == '__main__':
    run(main)
