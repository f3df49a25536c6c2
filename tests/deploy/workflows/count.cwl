# Two steps: the sequence without its header and line ends, then how often each triplet of bases occurs.
cwlVersion: v1.2
class: Workflow
inputs:
  genome: File
outputs:
  triplets:
    type: File
    outputSource: count/triplets
steps:
  extract:
    in: { genome: genome }
    out: [sequence]
    run:
      class: CommandLineTool
      baseCommand: [sh, -euc, 'grep -v "^>" "$0" | tr -d "\n"']
      stdout: sequence.txt
      inputs:
        genome: { type: File, inputBinding: {} }
      outputs:
        sequence: stdout
  count:
    in: { sequence: extract/sequence }
    out: [triplets]
    run:
      class: CommandLineTool
      baseCommand: [sh, -euc, 'fold -w3 "$0" | sort | uniq -c']
      stdout: triplets.txt
      inputs:
        sequence: { type: File, inputBinding: {} }
      outputs:
        triplets: stdout
