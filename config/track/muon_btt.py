# Block Tensor-Train, a third of the parameters, in all linear layers of the blocks; its factors are moved by Muon at four times
# the rate of the embeddings, as the matrices of config/track/muon.py are. Both gain under AdamW or alone: do the gains add up?
#
#   python compare.py config/track/muon_btt.py

include('small.py')
arms['muon_btt'] = '--optimizer=muon --hidden_lr=4 --linear=btt --linear_layers=mlp+attn'
learning_rates = dict(dense=learning_rates, muon_btt=(4e-3, 8e-3, 1.6e-2))
