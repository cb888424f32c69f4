# What is left of the gain of expansive networks when every arm has its own best learning rate? nanoGPT on Tiny
# Shakespeare, every MLP matrix a product of 2, 3 or 5 factors, 250 iterations as in the table of that work.
#
#   python compare.py config/compare/expansion_shakespeare.py --cluster=pool --jobs=8
#
# These are 85 runs, two or three seconds of an H100 each. Starting and compiling takes longer, so --cluster=pool runs
# several processes at once, and each does many runs. Copy out/results/expansion_shakespeare from a rented machine: with it
# the same command continues on any machine with a GPU, without repeating a run.

claim = (
    'With its learning rate tuned as well as the dense one, {arm} has a lower loss than {baseline} on Tiny Shakespeare'
    ' after 250 iterations'
)
note = (
    'Every MLP matrix as a product of factors (k: their inner width; 3 and 5 factors: k = 2000 throughout). Its author'
    ' compared arms at the shared rate 1e-3 (expansion_250); here each has the best rate of its own sweep.'
)
# save_checkpoint: 2.8 GB at k = 10000, for runs of seconds
common = '--max_iters=250 --eval_interval=50 --save_checkpoint=false'
arms = dict(
    dense='config/shakespeare_char.py',
    k2000='config/expansive_shakespeare.py',
    k10000='config/expansive_shakespeare.py --expansion=10000',
    factors3='config/expansive_shakespeare.py --expansion_depth=3',
    factors5='config/expansive_shakespeare.py --expansion_depth=5',
)
learning_rates = (7e-4, 1e-3, 1.5e-3, 2.2e-3, 3.3e-3, 5e-3)
shared_rate = 1e-3  # of expansive networks
sweep_seeds = 2
seeds = 5
looks = False  # from before docs/protocol.md: all seeds at once, the rate of the lowest mean
worth = 0.01  # nats; two fifths of the gain that the work reports
match = 'tokens'
