# For nginx's own ./configure, after config: the part of objs/Makefile that calls cargo.

if [ "$HTTP" = YES ]; then
    cat <<END >>"$NGX_MAKEFILE"

# Cargo knows best what has changed.
.PHONY:	$matrix_user_hash_library

$matrix_user_hash_library:
	NGINX_SOURCE_DIR="$PWD" NGINX_BUILD_DIR="\$\$(cd $NGX_OBJS && pwd)" \\
	"$matrix_user_hash_cargo" rustc --locked $matrix_user_hash_crates --manifest-path "$ngx_addon_dir/Cargo.toml" \\
		--package ngx_http_matrix_user_hash_module --lib --crate-type staticlib --no-default-features \\
		--profile $matrix_user_hash_profile --target-dir $matrix_user_hash_target

END
    if [ "$matrix_user_hash_link" = DYNAMIC ]; then
        cat <<END >>"$NGX_MAKEFILE"
$NGX_OBJS/ngx_http_matrix_user_hash_module.so:	$matrix_user_hash_library

END
    fi
fi
