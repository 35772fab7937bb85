"""Read and write other people's weights. load.py is the door for reading, export.py the door for writing.

formats.py                          the formats: marks, switches, preprocessing
renames.py rename_tables.py         their names of tensors and ours
preparation.py                      the preprocessing where weights do not say it
translate.py                        from the tensors of a file to a model
timm.py huggingface.py              models with their own config: timm's, transformers', OpenCLIP's
module.py timm_module.py            models that another library's module computes
timm_weights.py                     the tensors of a file for a module of timm's
hub.py hub_cache.py timm_download.py    downloads of one commit, the cache, times without a network
heads.py class_names.py             what a head's outputs are, and the names of its classes
hub_folder.py                       config.json and weights in one folder
export_timm.py export_huggingface.py export_npz.py      one writer for each format
"""
