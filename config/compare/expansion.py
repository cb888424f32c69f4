# The comparison of expansive networks as the author of that work ran it: nanoGPT on Tiny Shakespeare, every MLP matrix
# a product of two factors, 250 iterations, one learning rate for all arms. The result is in results/expansion_250: the
# expanded arms are ahead, by 0.040 nats at k = 2000. expansion_shakespeare.py asks what is left of that when each arm
# has its own best rate. At 250 iterations the rate still stands at its peak: the figures are about early training.
#
#   python compare.py config/compare/expansion.py

claim = 'At the shared learning rate 1e-3, after 250 iterations, {arm} has a lower loss than {baseline}'
common = '--max_iters=250'
arms = dict(
    dense='config/shakespeare_char.py',
    k2000='config/expansive_shakespeare.py',
    k10000='config/expansive_shakespeare.py --expansion=10000',
)
seeds = 12  # at most: docs/protocol.md
match = 'tokens'
