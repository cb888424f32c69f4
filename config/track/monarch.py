# Two block-diagonal factors around a permutation, a third of the parameters, in all linear layers of the blocks.
#
#   python compare.py config/track/monarch.py

include('small.py')
arms['monarch'] = '--linear=monarch --linear_layers=mlp+attn'
