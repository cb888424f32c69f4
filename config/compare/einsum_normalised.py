# Were the structures of einsum_gutenberg held back by what their papers add? Qiu et al. (2024) train GPT-2 with a norm on
# queries and keys and cap the size of the factors ("normalised"), for stability. Without both, runs of btt and monarch spike at
# lower rates than dense does. Here all arms have the norm on queries and keys, and the structures the cap.
#
#   python compare.py config/compare/einsum_normalised.py --cluster=pool --jobs=4
#
# Data, FLOPs, width and arms are those of einsum_gutenberg at 192, AdamW. About 27 runs of the sweep and 28 that decide, 13
# minutes of an H200. `worth` is that of einsum_gutenberg.

claim = 'With the stabilisers of the papers and on the FLOPs of the dense run, {arm} has a lower loss on Gutenberg than {baseline}'
note = (
    'Structures in all linear layers of the blocks, their factors capped at the RMS of their start times a learned gain; RMSNorm'
    ' on queries and keys in all arms, dense as well. 192 wide, AdamW, equal FLOPs, each at its own best rate.'
)
common = (
    'config/structured/gutenberg_bpe.py --n_embd=192 --n_head=6 --max_iters=2102 --lr_decay_iters=2102 --warmup_iters=105'
    ' --eval_interval=700 --qk_norm=true'
)
_structured = '--linear_layers=mlp+attn --linear_path=factored --structured_norm=true'
arms = dict(dense='', btt_rank4=f'--linear=btt --rank=4 {_structured}', monarch=f'--linear=monarch {_structured}')
learning_rates = (4e-3, 8e-3, 1.6e-2)
seeds = 8
worth = 0.03
match = 'flops'
bench = False
