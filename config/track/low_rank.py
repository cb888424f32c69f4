# W = B A with a third of the parameters, in all linear layers of the blocks.
#
#   python compare.py config/track/low_rank.py

include('small.py')
arms['low_rank'] = '--linear=low_rank --linear_layers=mlp+attn'
