# What sets the best rate of an expanded model? By theory two factors with k = 2000 change W about 3 times as much as the same
# rate changes W itself (effective_lr_ratio in linear/expanded.py), but the best rates differ by much less. Here the rate of the
# factors is divided by that ratio (expansion_lr = matched), and the sweep is repeated. If the MLPs set the best rate, it rises
# by the ratio. If the other parameters set it, it stays, and the loss says whether the MLPs need a lower rate.
#
#   python compare.py config/compare/expansion_matched.py --cluster=pool --jobs=6
#
# The setting is that of optimizers_shakespeare.py under AdamW: 250 iterations, warm-up 25, the rate falls to 0. With 1e-3, 2e-3 and
# 4e-3 alone all five arms seemed to have nearly the same best rate. With the two rates between them the undivided arms have a lower
# one, and the divided ones nearly that of dense. So it is in between: the rate rises, by 1.5, and the ratios are larger. 173 runs took 8
# minutes of an H200, five to eight at a time.

include('optimizers_shakespeare.py')

claim = 'After 250 iterations on Tiny Shakespeare, each at its own best rate, {arm} has a lower loss than {baseline}'
note = (
    "nanoGPT's Shakespeare model by characters, 250 iterations, warm-up 25, cosine to 0; the whole validation split. Every MLP matrix"
    ' is a product of two matrices with an inner width of k. _matched: the rate of the factors is divided by how much faster they'
    ' change the matrix.'
)

_k = 'config/expansive_shakespeare.py --expansion='
arms = dict(
    dense='config/shakespeare_char.py',
    k2000=f'{_k}2000',
    k2000_matched=f'{_k}2000 --expansion_lr=matched',
    k10000=f'{_k}10000',
    k10000_matched=f'{_k}10000 --expansion_lr=matched',
)
sizes = {}
learning_rates = (1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3)
