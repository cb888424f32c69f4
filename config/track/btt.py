# Block Tensor-Train, a third of the parameters, in all linear layers of the blocks.
#
#   python compare.py config/track/btt.py

include('small.py')
arms['btt'] = '--linear=btt --linear_layers=mlp+attn'
