# Blocks that share factors, with diagonal couplings, a third of the parameters, in all linear layers of the blocks.
#
#   python compare.py config/track/blast.py

include('small.py')
arms['blast'] = '--linear=blast --linear_layers=mlp+attn'
