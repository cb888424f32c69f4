# The track for one H100: what all its entries have in common. docs/track.md is the board and says how to enter.
#
#   python compare.py config/track/gpu.py               trains the baseline: its sweep, eight seeds, what a claim will need
#   python compare.py config/track/low_rank_gpu.py      an entry
#
# Gutenberg in a vocabulary of its own (BPE, 4,096), 8 layers, 640 wide: 42M parameters. 2,958 steps of 32,768 tokens are two
# passes over the 48.5M tokens there are. Warm-up 5%, cosine to 0, the whole validation split. Only the loss at these tokens
# is compared. A run is estimated at one to two minutes of an H100, an entry of about 20 runs at half an hour (not measured).
# `worth` and the rates are provisional until the baseline's sweep and eight seeds are there.

track = 'gpu'
claim = 'On Gutenberg, from the same 96.9M tokens, {arm} has a lower loss than {baseline}'
common = (
    '--dataset=gutenberg_bpe --data_order=permutation --block_size=256 --batch_size=128 --gradient_accumulation_steps=1'
    ' --n_layer=8 --n_head=10 --n_embd=640 --learning_rate=2e-3 --min_lr=0 --warmup_iters=148 --max_iters=2958'
    ' --lr_decay_iters=2958 --eval_interval=986 --eval_iters=0 --log_interval=50 --save_checkpoint=false --device=cuda --dtype=bfloat16'
)
arms = dict(dense='')
learning_rates = (1e-3, 2e-3, 4e-3)
seeds = 8
worth = 0.01
match = 'tokens'
bench = False
cluster, jobs = 'pool', 1
