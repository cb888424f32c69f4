# Which structure in all linear layers of the blocks buys the most loss per FLOP? Gutenberg in a vocabulary of its own,
# 6 layers, 128 wide, each arm at its own best rate and trained until it has used the dense run's FLOPs.
# config/structured/gutenberg_bpe.py says the rest of the setting; einsum_gutenberg_192.py is the next size.
#
#   python compare.py config/compare/einsum_gutenberg.py --cluster=pool --jobs=8
#
# So far it has dense and low_rank. The other arms come later; results/prices.md says what they cost. A structure needs
# fewer FLOPs per token, so it sees more tokens than dense: max_iters is dense's 1,041 times the ratio of FLOPs per
# token, and compare.py checks that the FLOPs are equal. In all structures the input goes through the factors
# (linear_path): the papers count the FLOPs of that computation. `auto` would form the dense matrix where that is
# faster.

claim = 'On the FLOPs of the dense run, each at its own best rate, {arm} has a lower loss on Gutenberg than {baseline}'
note = (
    "Structures in all linear layers of the blocks, a third of the dense parameters, the papers' start and rates; embeddings"
    ' and head are dense and tied. 20 tokens per parameter of the dense twin, then equal FLOPs.'
)
common = 'config/structured/gutenberg_bpe.py'
sizes = dict(w128='--n_embd=128 --n_head=4')
_structured = '--linear_layers=mlp+attn --linear_path=factored'
arms = dict(
    dense='',
    low_rank=f'--linear=low_rank {_structured} --max_iters=1681 --lr_decay_iters=1681 --warmup_iters=84',
    # to come: block_dense, monarch, btt (rank 1 and 4), kronecker, tensor_train, block_diagonal, btt_moe, mlp = moe
)
learning_rates = (1.6e-3, 2.5e-3, 4e-3, 6.4e-3, 1e-2, 1.6e-2)
sweep_seeds = 3
seeds = 8
worth = 0.01
match = 'flops'
bench = False
