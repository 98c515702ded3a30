#!/usr/bin/env bash
# The program on Kubernetes, as a JobSet: on a TPU slice or on GPU nodes of GKE (or any cluster that
# has the JobSet controller).
#
#   launch/gke.sh start --name=dimo --image=IMAGE --tpu=v5e:4x4 -- \
#       --config=configs/imagenet.py --workdir=gs://BUCKET/imagenet
#   launch/gke.sh start --name=dimo --image=IMAGE --gpu=nvidia-h100-80gb --hosts=2 -- ...
#
#   build    make the image from this checkout and push it
#   start    create the JobSet
#   status   the JobSet and its pods
#   logs     the end of the pods' logs
#   stop     delete the JobSet: the program gets SIGTERM and saves; "start" goes on from there
#
#   --name=NAME --namespace=NS --context=CONTEXT   of kubectl
#   --image=IMAGE              built by "build", or holding this checkout as its work directory
#   --tpu=VERSION:TOPOLOGY     v4:2x2x4, v5e:4x4, v5p:2x2x2, v6e:8x8
#   --num_slices=N             of that shape, one run, joined by the data-centre network   (1)
#   --chips_per_host=N         (4; 8 or 1 for the v5e and v6e that fit one host)
#   --gpu=TYPE                 the label cloud.google.com/gke-accelerator; "any" for no label
#   --hosts=N                  GPU nodes                     (1)
#   --gpus_per_host=N          GPUs of each                  (8)
#   --max_restarts=N           after failures; preemptions do not count   (10)
#   --grace_s=S                from SIGTERM to SIGKILL       (300)
#   --service_account=NAME     the pods' Kubernetes account, for Workload Identity   (default)
#   --run_as=UID:GID           the user in the pods, owner of a --claim   (1000:1000, the image's;
#                              0:0 on TPUs, whose devices and locked memory need root)
#   --node_selector=KEY=VALUE  e.g. cloud.google.com/gke-spot=true; may be repeated
#   --label=KEY=VALUE          of the JobSet, e.g. kueue.x-k8s.io/queue-name=Q; likewise
#   --env=KEY=VALUE            of the program; likewise
#   --claim=CLAIM:PATH         mounts a PersistentVolumeClaim; likewise
#   --annotation=KEY=VALUE     of the pods, e.g. networking.gke.io/default-interface=eth0; likewise
#   --host_volume=NAME=PATH[:MOUNT]  a folder of the node, for side-cars by its name, and for the
#                              program at MOUNT; likewise
#   --sidecars=FILE            a YAML list for the pods' initContainers, each with restartPolicy:
#                              Always, e.g. the daemon of GPUDirect-TCPX or -TCPXO
#   --python=PATH              in the image                  (python)
#   --module=NAME              what runs: python -m NAME     (dimo_jax.main)
#   --lines=N --follow         for logs: how many lines a pod (50), or all as they come
#   --dry-run                  print the commands, run nothing
#
# On TPUs JAX finds its peers by the variables that GKE sets; on GPUs one process a node is told its
# coordinator, pod 0.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

COMMANDS='build start status logs stop'
name='' namespace='' context='' image='' tpu='' chips_per_host='' gpu='' hosts='' gpus_per_host=8
max_restarts=10 grace_s=300 service_account=default node_selector=() label=() env=() claim=()
num_slices=1 run_as='' annotation=() host_volume=() sidecars=''
python=python module=dimo_jax.main lines=50 follow=false
parse_flags "name namespace context image tpu chips_per_host gpu hosts gpus_per_host max_restarts
  grace_s service_account node_selector+ label+ env+ claim+ num_slices run_as annotation+
  host_volume+ sidecars python module lines follow!" "$@"
[[ -n $COMMAND ]] || die "name one of: $COMMANDS"
if [[ $COMMAND != build ]]; then
  require name
  [[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ && ${#name} -le 40 ]] ||
    die "--name=$name: a letter first, then letters, digits and hyphens, all small, 40 at most"
fi

kubectl=(kubectl)
[[ -z $context ]] || kubectl+=("--context=$context")
[[ -z $namespace ]] || kubectl+=("--namespace=$namespace")

# A JSON string, which is a YAML string too.
json_string() {
  local text=$1 from to
  for from in "\\" '"' $'\n' $'\t' $'\r'; do
    case $from in
      $'\n') to='\n' ;; $'\t') to='\t' ;; $'\r') to='\r' ;; *) to="\\$from" ;;
    esac
    text=${text//"$from"/"$to"}
  done
  printf '"%s"' "$text"
}

# json_list WORD...: a list of strings.
json_list() {
  local text='' word
  for word in "$@"; do text+=", $(json_string "$word")"; done
  printf '[%s]' "${text#, }"
}

# json_map KEY=VALUE...: a map of strings.
json_map() {
  local text='' pair
  for pair in "$@"; do
    text+=", $(json_string "${pair%%=*}"): $(json_string "${pair#*=}")"
  done
  printf '{%s}' "${text#, }"
}

# The host count and labels of a TPU slice: sets hosts, per_host, resource, selector.
describe_tpu() {
  local version=${tpu%%:*} shape=${tpu#*:} accelerator chips
  require_count num_slices
  [[ $tpu =~ ^[a-z0-9]+:[1-9][0-9]*x[1-9][0-9]*(x[1-9][0-9]*)?$ ]] ||
    die "--tpu=$tpu is not VERSION:TOPOLOGY, e.g. v5e:4x4"
  case $version in
    v5litepod | v5lite) die "--tpu=$tpu: that version is v5e here: --tpu=v5e:$shape" ;;
    v4) accelerator='tpu-v4-podslice' ;;
    v5e) accelerator='tpu-v5-lite-podslice' ;;
    v5p) accelerator='tpu-v5p-slice' ;;
    v6e) accelerator='tpu-v6e-slice' ;;
    *) die "--tpu=$tpu: the versions are v4, v5e, v5p and v6e" ;;
  esac
  chips=$((${shape//x/*}))
  if [[ -z $chips_per_host ]]; then
    chips_per_host=4
    [[ $version:$chips != v[56]e:1 ]] || chips_per_host=1
    [[ $version:$chips != v[56]e:8 ]] || chips_per_host=8
  fi
  require_count chips_per_host
  ((chips % chips_per_host == 0)) ||
    die "--tpu=$tpu has $chips chips, which --chips_per_host=$chips_per_host does not divide"
  hosts=$((chips / chips_per_host)) per_host=$chips_per_host resource=google.com/tpu
  selector=(
    "cloud.google.com/gke-tpu-accelerator=$accelerator"
    "cloud.google.com/gke-tpu-topology=$shape"
  )
}

# The GPU nodes: sets hosts, per_host, resource, selector.
describe_gpus() {
  [[ -n $hosts ]] || hosts=1
  require_count hosts gpus_per_host
  per_host=$gpus_per_host resource=nvidia.com/gpu selector=()
  [[ $gpu == any ]] || selector=("cloud.google.com/gke-accelerator=$gpu")
}

# Sets settings: a line "KEY VALUE" for each @KEY@ of the template.
describe_jobset() {
  local arguments annotations=() security='' mounts='' volumes='' number=0 pair place
  for pair in ${label[@]+"${label[@]}"} ${node_selector[@]+"${node_selector[@]}"} \
    ${env[@]+"${env[@]}"} ${annotation[@]+"${annotation[@]}"}; do
    [[ $pair == ?*=* ]] || die "'$pair' is not KEY=VALUE"
  done
  if [[ -n $tpu ]]; then
    [[ -z $gpu$hosts ]] || die "--tpu excludes --gpu and --hosts"
    describe_tpu
    # All pods on one slice, where several node pools have this shape.
    annotations=(alpha.jobset.sigs.k8s.io/exclusive-topology=cloud.google.com/gke-nodepool)
    security=', "capabilities": {"add": ["SYS_RESOURCE"]}' # for pod.sh's ulimit
    [[ -n $run_as ]] || run_as=0:0
  else
    [[ -n $gpu ]] || die "--tpu=VERSION:TOPOLOGY or --gpu=TYPE is missing; see $SCRIPT --help"
    ((num_slices == 1)) || die "--num_slices is for --tpu; GPU nodes are counted by --hosts"
    describe_gpus
    [[ -n $run_as ]] || run_as=1000:1000
    mounts=', {"name": "shm", "mountPath": "/dev/shm"}' # NCCL; the default is 64 MiB
    volumes=', {"name": "shm", "emptyDir": {"medium": "Memory"}}'
  fi
  for pair in ${claim[@]+"${claim[@]}"}; do
    [[ $pair == ?*:/* ]] || die "--claim=$pair is not CLAIM:/PATH"
    mounts+=", {\"name\": \"claim-$number\", \"mountPath\": $(json_string "${pair#*:}")}"
    volumes+=", {\"name\": \"claim-$number\", \"persistentVolumeClaim\": "
    volumes+="{\"claimName\": $(json_string "${pair%%:*}")}}"
    number=$((number + 1))
  done
  for pair in ${host_volume[@]+"${host_volume[@]}"}; do
    [[ $pair =~ ^[a-z0-9-]+=/[^:]*(:/[^:]*)?$ ]] ||
      die "--host_volume=$pair is not NAME=/PATH or NAME=/PATH:/MOUNT"
    place=${pair#*=}
    volumes+=", {\"name\": \"${pair%%=*}\", \"hostPath\": {\"path\": $(json_string "${place%%:*}")}}"
    [[ $place != *:* ]] ||
      mounts+=", {\"name\": \"${pair%%=*}\", \"mountPath\": $(json_string "${place#*:}")}"
  done
  [[ $run_as =~ ^[0-9]+:[0-9]+$ ]] || die "--run_as=$run_as is not UID:GID, two numbers"
  [[ -z $sidecars || -f $sidecars ]] || die "--sidecars=$sidecars: there is no such file"
  # Kubernetes reads $$ in arguments and variables as $, and $(NAME) as a variable.
  arguments=("$python" -m "$module" "${PROGRAM[@]}")
  arguments=("${arguments[@]//'$'/'$$'}")
  [[ -n $tpu ]] || arguments+=(
    "--coordinator=$name-host-0-0.$name:8476" "--num_processes=$hosts"
    "--process_id=\$(JOB_COMPLETION_INDEX)"
  )
  settings="NAME $name
LABELS $(json_map ${label[@]+"${label[@]}"})
ANNOTATIONS $(json_map ${annotations[@]+"${annotations[@]}"})
POD_ANNOTATIONS $(json_map ${annotation[@]+"${annotation[@]}"})
FS_GROUP {\"fsGroup\": ${run_as#*:}}
SLICES $num_slices
MAX_RESTARTS $max_restarts
HOSTS $hosts
GRACE_S $grace_s
SERVICE_ACCOUNT $(json_string "$service_account")
NODE_SELECTOR $(json_map ${selector[@]+"${selector[@]}"} ${node_selector[@]+"${node_selector[@]}"})
IMAGE $(json_string "$image")
ARGS $(json_list "${arguments[@]}")
ENV $(json_env ${env[@]+"${env[@]//'$'/'$$'}"})
LIMITS {\"$resource\": $per_host}
SECURITY_CONTEXT {\"runAsUser\": ${run_as%:*}, \"runAsGroup\": ${run_as#*:}$security}
MOUNTS [${mounts#, }]
VOLUMES [${volumes#, }]"
}

# json_env KEY=VALUE...: as a container's env wants it.
json_env() {
  local text='' pair
  for pair in "$@"; do
    text+=", {\"name\": $(json_string "${pair%%=*}"), \"value\": $(json_string "${pair#*=}")}"
  done
  printf '[%s]' "${text#, }"
}

# The template with its @NAME@s filled in; what is filled in is not read again.
render() {
  local line key value
  while IFS= read -r line; do
    if [[ $line == *@SIDECARS@ ]]; then
      # A list in YAML keeps its meaning wherever all of it is indented alike.
      [[ -z $sidecars ]] ||
        awk -v key="${line%@*@}" -v indent="${line%%[! ]*}" \
          'BEGIN { print key } { print indent $0 }' "$sidecars"
      continue
    fi
    if [[ $line =~ ^(.*)@([A-Z_]+)@(.*)$ ]]; then
      key=${BASH_REMATCH[2]}
      value=$(grep "^$key " <<<"$settings")
      line=${BASH_REMATCH[1]}${value#"$key "}${BASH_REMATCH[3]}
    fi
    printf '%s\n' "$line"
  done <"$ROOT/launch/gke_jobset.yaml"
}

build() {
  local extra=tpu
  require image
  [[ -z $gpu ]] || extra=cuda13,gs
  run docker build "--file=$ROOT/launch/Dockerfile" "--build-arg=EXTRA=$extra" \
    "--tag=$image" "$ROOT"
  run docker push "$image"
}

start() {
  local manifest command
  require image
  require_program
  require_count grace_s
  [[ $max_restarts =~ ^[0-9]+$ ]] || die "--max_restarts=$max_restarts is not a whole number from 0"
  describe_jobset
  [[ " ${PROGRAM[*]} " == *" --workdir=gs://"* || ${#claim[@]} -gt 0 ]] ||
    note "the work directory is neither on gs:// nor on a --claim; a pod's disk ends with the pod"
  manifest=$(render)
  command=$(quote "${kubectl[@]}" create --filename=-)
  if $DRY_RUN; then
    printf '%s\n' "$command <<'END_OF_JOBSET'" "$manifest" END_OF_JOBSET
  else
    note "$command"
    "${kubectl[@]}" create --filename=- <<<"$manifest"
  fi
}

status() {
  run "${kubectl[@]}" get jobset "$name"
  run "${kubectl[@]}" get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=wide
}

logs() {
  local how=("--tail=$lines")
  ! $follow || how=(--follow --tail=-1)
  require_count lines
  # kubectl follows 5 pods at most, unless told otherwise.
  run "${kubectl[@]}" logs "--selector=jobset.sigs.k8s.io/jobset-name=$name" --prefix \
    --max-log-requests=1000 "${how[@]}"
}

stop() { run "${kubectl[@]}" delete jobset "$name"; }

"$COMMAND"
