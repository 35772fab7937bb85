"""Read and write other people's weights. load.py is the door for reading, export.py the door for writing.

formats.py                          the formats: marks, switches, preprocessing
renames.py rename_tables.py         their names of tensors and ours
translate.py                        from the tensors of a file to a model
timm.py huggingface.py              models with their own config: timm's, transformers', OpenCLIP's
hub_folder.py                       config.json and weights in one folder
export_timm.py export_huggingface.py export_npz.py      one writer for each format
"""
