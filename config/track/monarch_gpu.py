# Two block-diagonal factors around a permutation, a third of the parameters, in all linear layers of the blocks.
#
#   python compare.py config/track/monarch_gpu.py

include('gpu.py')
arms['monarch'] = '--linear=monarch --linear_layers=mlp+attn'
