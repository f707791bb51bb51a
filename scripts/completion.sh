# shellcheck shell=bash
# Completion of `make` in this bundle's folder, for bash and zsh: verbs, their variables, and the values these take.
#
#   . scripts/completion.sh         for this shell; in ~/.bashrc or ~/.zshrc with its whole path, for every one
#
# Everything is read from the Makefile and env/ of the folder that one is in; anywhere else `make` is completed as before (bash) or by files.
if [ -n "${ZSH_VERSION:-}" ]; then
    autoload -U +X compinit bashcompinit && compinit -u && bashcompinit
fi

_vllm_bundle_values() {
    case $1 in
        PROFILE) for file in env/*.env; do file=${file##*/}; case $file in base.env | site.env) ;; *) echo "${file%.env}" ;; esac; done ;;
        GPU) sed -n 's/^\([a-z0-9][a-z0-9-]*\):.*/\1/p; s/^ *- *name: *//p' env/gpus.yaml ;;
        MONITORING) echo 'on off' ;;
        SUITE) sed -n '/^suites:/,$s/^  \([a-z0-9-]*\):$/\1/p' env/matrix.yaml ;;
        VERDICT) echo 'effective inert harmful removed' ;;
        HOST_SETUP) echo 'auto never' ;;
        JSON | ONCE | DEEP | FORCE | VOLUMES | WRITE | OFFLINE | LIST | AUDIT | METRICS_ONLY | WITH_IMAGES | NO_START | ACCEPT_COMPOSE) echo 1 ;;
        PROJECT) for file in .state/*.engine.env; do file=${file##*/}; [ "$file" = '*.engine.env' ] || echo "${file%.engine.env}"; done ;;
        ENV_FILE | MODEL | FROM | OUT | FILE | INTO | TOKEN_FILE) compgen -f -- "$2" ;;
    esac
}

_vllm_bundle() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} name='' words
    COMPREPLY=()
    grep -qs '^# Every verb is one script' Makefile || return 0
    # bash takes NAME=val apart at the =, zsh does not.
    case $word in
        =) name=$before word='' ;;
        *=*) name=${word%%=*} word=${word#*=} ;;
        *) [ "$before" = = ] && name=${COMP_WORDS[COMP_CWORD-2]} ;;
    esac
    if [ -n "$name" ]; then
        words=$(_vllm_bundle_values "$name" "$word")
        while IFS= read -r line; do
            [ -n "$line" ] && COMPREPLY+=("${ZSH_VERSION:+$name=}$line")
        done < <(compgen -W "$words" -- "$word")
        return 0
    fi
    words=$(sed -n 's/^\([a-z][a-z0-9-]*\):.*## .*/\1/p' Makefile
        # shellcheck disable=SC2016  # Makefile's $(…), not the shell's
        grep -o '\$(\(if \|foreach [a-z],\)\?\(\$(\)\?[A-Z_]*' Makefile | sed 's/.*[^A-Z_]//; /^PYTHON$/d; /^MAKEFILE_LIST$/d; /./s/$/=/' | sort -u)
    while IFS= read -r line; do
        [ -n "$line" ] && COMPREPLY+=("$line")
    done < <(compgen -W "$words" -- "$word")
    case ${COMPREPLY[*]} in *=) compopt -o nospace 2> /dev/null ;; esac
    return 0
}

complete -o default -F _vllm_bundle make
