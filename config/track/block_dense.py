# A block-diagonal factor, then a dense one, a third of the parameters, in all linear layers of the blocks.
#
#   python compare.py config/track/block_dense.py

include('small.py')
arms['block_dense'] = '--linear=block_dense --linear_layers=mlp+attn'
