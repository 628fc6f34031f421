# read: paste from here
curl --silent --show-error --fail-with-body --location --output "$file" "$url"
# read: paste to here
# range: paste from here
curl --silent --show-error --fail-with-body --location --range "$first-$last" --output "$file" "$url"
# range: paste to here
