# The small track: what all its entries have in common. docs/track.md is the board and says how to enter.
#
#   python compare.py config/track/small.py          trains the baseline: its sweep, eight seeds, what a claim will need
#   python compare.py config/track/low_rank.py       an entry
#
# Tiny Shakespeare by characters, 3 layers, 64 wide: 400 steps of 768 tokens (307,200 of the million there are), warm-up 5%,
# cosine to 0. Only the loss at these tokens is compared. All runs are on a CPU in float32. The runs on
# the board took 15 to 58 seconds each on shared cores (column "seconds"); an entry has about 20, two at a time.
#
# The baseline came first: eight seeds have a standard deviation of 0.0131 (results/track/small/dense). With that, eight
# seeds of an entry find a gain of 0.0245 with 80%. So `worth` is 0.025 and `seeds` is 8.

track = 'small'
claim = 'On Tiny Shakespeare, from the same 307,200 tokens, {arm} has a lower loss than {baseline}'
common = (
    '--dataset=shakespeare_char --data_order=permutation --block_size=64 --batch_size=12 --gradient_accumulation_steps=1'
    ' --n_layer=3 --n_head=4 --n_embd=64 --learning_rate=8e-3 --min_lr=0 --warmup_iters=20 --max_iters=400'
    ' --lr_decay_iters=400 --eval_interval=400 --eval_iters=24 --log_interval=20 --save_checkpoint=false --device=cpu'
    ' --dtype=float32 --compile=false'
)
arms = dict(dense='')
learning_rates = (2e-3, 4e-3, 8e-3)
seeds = 8
worth = 0.025
match = 'tokens'
bench = False
cluster, jobs = 'pool', 2
