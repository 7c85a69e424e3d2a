"""What a caller chooses from, for the library and the command line; costs nothing to import."""

DEVICES = ("auto", "cpu", "cuda", "metal")
# whether both models are in memory at once; auto decides by the machine's memory
STAGES = ("auto", "together", "apart")
# what a captioner is asked: the same for every question, or also what the question needs
INSTRUCTION_MODES = ("generic", "question")
# how a question's options are put to a reasoner: lettered and listed; not shown, and the free
# answer matched to them; or bound to their texts
OPTION_FORMS = ("letters", "free", "bound")
