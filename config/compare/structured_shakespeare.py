# Which structured matrix buys the most loss at about a third of the dense parameters? Every MLP matrix of nanoGPT's
# Shakespeare model, each arm at its own best learning rate; the dense model beside them has three times the parameters.
#
#   python compare.py config/compare/structured_shakespeare.py --cluster=pool --jobs=8
#
# These are 108 runs for the rates, and about as many to decide, of seconds each on a GPU. The Pareto plots show loss
# against parameters and milliseconds.

claim = 'With its learning rate tuned as well as that of low_rank, {arm} has a lower loss on Tiny Shakespeare after 250 iterations'
note = (
    "Every MLP matrix structured, about a third of the dense parameters (printed by each run), the papers' start and rates."
    ' dense is shown for scale: it has three times the parameters of the others.'
)
common = '--max_iters=250 --eval_interval=50 --save_checkpoint=false'
arms = dict(
    low_rank='config/structured/low_rank.py',
    block_dense='config/structured/block_dense.py',
    monarch='config/structured/monarch.py',
    btt='config/structured/btt.py',
    kronecker='config/structured/kronecker.py',
    tensor_train='config/structured/tensor_train.py',
    block_diagonal='config/structured/block_diagonal.py',
    einsum='config/structured/einsum.py',
    dense='config/shakespeare_char.py',
)
learning_rates = (1e-3, 2e-3, 4e-3, 8e-3)
sweep_seeds = 3
seeds = 12
worth = 0.01
match = 'tokens'
