# Where does the gain of expanded layers come from? GPTs on Tiny Shakespeare, dense and with every MLP matrix as a
# product of two factors, both at the shared rate 1e-3; then dense at the best rate of its own sweep. `make run` shows
# one random seed of this; here are three, with intervals.
#
#   python compare.py config/compare/story.py --jobs=2
#
# Without a GPU it uses the small preset, as results/story did; with one, the full size.

claim = 'On Tiny Shakespeare {arm} reaches a lower loss than {baseline}'
note = 'The small preset. dense and expanded share the rate 1e-3, dense_own has the best of four.'
common = '--save_checkpoint=false'
arms = dict(
    dense='config/shakespeare_char.py',
    expanded='config/expansive_shakespeare.py',
    dense_own='config/shakespeare_char.py',
)
learning_rates = dict(dense_own=(2e-3, 4e-3, 8e-3, 16e-3))
sweep_seeds = 1
seeds = 3
looks = False  # from before docs/protocol.md: all seeds at once, the rate of the lowest mean
at = 'best'
match = 'tokens'
bench = False  # the story is about the loss
cluster = 'pool'
