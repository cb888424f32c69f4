# The structures of einsum_gutenberg as their papers train them (Qiu et al. 2024, arXiv 2406.06248): QK norm in all arms, the RMS
# of the factors capped ("normalised"), and the FLOPs that a structure saves spent on width.
#
#   python compare.py config/compare/einsum_papers.py --cluster=pool --jobs=4
#
# Data, FLOPs, `worth` and dense are those of einsum_gutenberg at 192, AdamW. There, without norm and cap, runs of btt and monarch
# spike at lower rates than dense, and a structure spends the FLOPs that it saves on tokens. Here two arms do that, too. The _wide
# arms are 256 wide and see 10% (btt) and 22% (monarch) more tokens than dense. About 90 runs, 26 minutes of an H200.

claim = (
    'Trained as in its paper and on the FLOPs of the dense run, each at its own best rate, {arm} has a lower loss on Gutenberg'
    ' than {baseline}'
)
note = (
    'Structures in all linear layers of the blocks, their factors capped at the RMS of their start times a learned gain; RMSNorm'
    ' on queries and keys in all arms, dense as well. dense 192 wide, the _wide arms 256; AdamW, equal FLOPs.'
)
common = (
    'config/structured/gutenberg_bpe.py --n_embd=192 --n_head=6 --max_iters=2102 --lr_decay_iters=2102 --warmup_iters=105'
    ' --eval_interval=700 --qk_norm=true'
)
_structured = '--linear_layers=mlp+attn --linear_path=factored --structured_norm=true'
_wide = '--n_embd=256 --n_head=8'
arms = dict(
    dense='',
    btt_rank4=f'--linear=btt --rank=4 {_structured}',
    monarch=f'--linear=monarch {_structured}',
    btt_rank4_wide=f'--linear=btt --rank=4 {_structured} {_wide}',
    monarch_wide=f'--linear=monarch {_structured} {_wide}',
)
learning_rates = (4e-3, 8e-3, 1.6e-2)
seeds = 8
worth = 0.03
match = 'flops'
bench = False
